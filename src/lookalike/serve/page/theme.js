// Dark or light colours: as in the system settings, unless the switch says otherwise. Not a module, so that it runs before the first paint.
(() => {
  const KEY = "lookalike-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const ofSystem = () => (system.matches ? "dark" : "light");

  function chosen() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // no storage: the choice holds for this page
    }
  }

  function choose(theme) {
    try {
      if (theme === ofSystem()) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, theme);
    } catch {
      // as above
    }
    show(theme);
  }

  function show(theme) {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      const label = theme === "dark" ? "Use light colours" : "Use dark colours";
      button.setAttribute("aria-label", label);
      button.title = label;
    }
    const bar = document.querySelector('meta[name="theme-color"]');
    if (bar) bar.content = theme === "dark" ? "#111315" : "#f5f5f2";
  }

  const current = () => {
    const theme = chosen();
    return theme === "dark" || theme === "light" ? theme : ofSystem();
  };
  show(current());
  system.addEventListener("change", () => show(current()));
  document.addEventListener("DOMContentLoaded", () => {
    show(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      choose(root.dataset.theme === "dark" ? "light" : "dark");
    });
  });
})();
