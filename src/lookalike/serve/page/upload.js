// Take images that are dropped, pasted, chosen, or taken with a phone's camera.

import { at } from "./format.js";

/**
 * Listen for images.
 * @param {(file: File) => void} take called with each file
 * @param {(message: string, remedy: string) => void} refuse called if something else is dropped or pasted
 */
export function listen(take, refuse) {
  for (const [button, input] of [["choose", "file"], ["again", "file"], ["photograph", "camera"]]) {
    at(button).addEventListener("click", () => at(input).click());
  }
  for (const input of [at("file"), at("camera")]) {
    input.addEventListener("change", () => {
      const file = input.files[0];
      input.value = ""; // so that choosing the same file again is a change
      if (file) take(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) {
      event.preventDefault();
      take(file);
    } else if (!event.target.closest?.("input, textarea")) {
      refuse("There is no image on the clipboard.", "Copy the image itself, not its address, and paste again.");
    }
  });
  drops(take, refuse);
}

function drops(take, refuse) {
  let depth = 0; // nested elements under the pointer
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
    event.preventDefault(); // otherwise the browser opens the file
    const entry = event.dataTransfer.items[0]?.webkitGetAsEntry?.();
    const file = event.dataTransfer.files[0];
    if (entry?.isDirectory) refuse("This is a folder.", "Drop one image file.");
    else if (file) take(file);
    else refuse("This is a link, not an image file.", "Save the image, then drop the file.");
  });
  addEventListener("keydown", (event) => event.key === "Escape" && over(0));
}

function carries(event) {
  const types = [...event.dataTransfer.types];
  return types.includes("Files") || types.includes("text/uri-list");
}
