// Ways in for a picture: dropped anywhere, pasted, chosen, or taken with a phone's camera.

import { at } from "./words.js";

/**
 * Listen for pictures.
 * @param {(file: File) => void} take called with each
 * @param {(message: string, remedy: string) => void} refuse called when something else came
 */
export function listen(take, refuse) {
  for (const [button, input] of [["choose", "file"], ["again", "file"], ["photograph", "camera"]]) {
    at(button).addEventListener("click", () => at(input).click());
  }
  for (const input of [at("file"), at("camera")]) {
    input.addEventListener("change", () => {
      const file = input.files[0];
      input.value = ""; // so that the same file can be chosen again
      if (file) take(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) {
      event.preventDefault();
      take(file);
    } else if (!event.target.closest?.("input, textarea")) {
      refuse("There is no picture on the clipboard.", "Copy the picture itself, not its address, and paste again.");
    }
  });
  drops(take, refuse);
}

function drops(take, refuse) {
  let depth = 0; // elements that are being dragged over, one in the other
  const over = (inside) => {
    depth = inside;
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over(depth + 1);
  });
  addEventListener("dragleave", () => over(Math.max(0, depth - 1)));
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  addEventListener("drop", (event) => {
    over(0);
    if (!carries(event)) return;
    event.preventDefault(); // else the browser would leave the page for the file
    const entry = event.dataTransfer.items[0]?.webkitGetAsEntry?.();
    const file = event.dataTransfer.files[0];
    if (entry?.isDirectory) refuse("That is a folder.", "Drop one picture of it.");
    else if (file) take(file);
    else refuse("That is an address, not a picture.", "Nothing is fetched from the web: save the picture, then drop the file.");
  });
  addEventListener("keydown", (event) => event.key === "Escape" && over(0));
}

function carries(event) {
  const types = [...event.dataTransfer.types];
  return types.includes("Files") || types.includes("text/uri-list");
}
