// What is wrong with a page for who can't see it, see it well, or point at it well: lists that should be empty.

window.checks = {
  controls: "a[href], button, input, select, summary, [tabindex='0']",

  /** Controls without a name. */
  nameless() {
    return this.shown().filter((one) => {
      const by = (one.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent);
      const words = [
        one.getAttribute("aria-label"), ...by, ...[...(one.labels ?? [])].map((label) => label.textContent),
        one.matches("input, select") ? "" : one.textContent, one.querySelector("img")?.alt,
      ];
      return !words.some((text) => text?.trim());
    }).map(this.told);
  },

  /** Controls below 24 pixels a side; links in a line of text may be, and boxes whose whole line is clicked. */
  small() {
    return this.shown().filter((one) => {
      if (one.matches(".skip, #done a, label input")) return false;
      const { width, height } = one.getBoundingClientRect();
      return width < 24 || height < 24;
    }).map(this.told);
  },

  /** Ids that are there twice or not at all, pictures without words, no language, no first heading or two. */
  broken() {
    const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
    const wrong = ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => `twice: ${id}`);
    for (const name of ["aria-labelledby", "aria-describedby", "aria-controls", "for", "list"]) {
      for (const one of document.querySelectorAll(`[${name}]`)) {
        const missing = one.getAttribute(name).split(" ").filter((id) => !ids.includes(id));
        wrong.push(...missing.map((id) => `${name}: ${id}`));
      }
    }
    if (!document.documentElement.lang) wrong.push("no language");
    for (const image of document.images) if (!image.hasAttribute("alt")) wrong.push(this.told(image));
    const first = [...document.querySelectorAll("h1")].filter((one) => one.checkVisibility());
    if (first.length !== 1) wrong.push(`${first.length} first headings`);
    return wrong;
  },

  /** Texts of less contrast than 4.5 to 1, large ones than 3 to 1: level AA. */
  faint() {
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode.data.trim();
      const one = texts.currentNode.parentElement;
      if (!text || !one.checkVisibility({ opacityProperty: true }) || one.closest(".unseen, .skip, option")) continue;
      const style = getComputedStyle(one);
      const [more, less] = [this.light(style.color), this.light(this.behind(one))].sort((a, b) => b - a);
      const ratio = (more + 0.05) / (less + 0.05);
      const size = parseFloat(style.fontSize);
      const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      if (ratio < (isLarge ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${text}`);
    }
    return found;
  },

  shown() {
    return [...document.querySelectorAll(this.controls)].filter((one) => one.checkVisibility({ visibilityProperty: true }));
  },

  told(one) {
    return one.outerHTML.slice(0, 120);
  },

  behind(one) {
    while (one && this.rgba(getComputedStyle(one).backgroundColor)[3] < 255) one = one.parentElement;
    return one ? getComputedStyle(one).backgroundColor : "white";
  },

  /** Relative luminance, as WCAG has it. */
  light(colour) {
    const [red, green, blue] = this.rgba(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  },

  /** Whatever way a colour is written, as it is painted: 0..255 each. */
  rgba(colour) {
    this.canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    this.canvas.clearRect(0, 0, 1, 1);
    this.canvas.fillStyle = colour;
    this.canvas.fillRect(0, 0, 1, 1);
    return [...this.canvas.getImageData(0, 0, 1, 1).data];
  },
};
