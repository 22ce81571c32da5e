// Format numbers and texts, and create elements.

const whole = new Intl.NumberFormat("en");
const NARROW = "\u00a0"; // between a number and its unit

/** count(1, "image") is "1 image", count(2716, "image") is "2,716 images". */
export function count(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

/** A probability, 0 to 1, as a percentage; never 0 % or 100 %. */
export function percent(probability) {
  const value = 100 * probability;
  if (value > 99.9) return `> 99.9${NARROW}%`;
  if (value < 0.1) return `< 0.1${NARROW}%`;
  return `${value.toFixed(value < 10 ? 1 : 0)}${NARROW}%`;
}

/** A cosine, -1 to 1, with two digits. */
export function cosine(score) {
  return score.toFixed(2).replace("-", "−");
}

/** A duration in milliseconds. */
export function duration(ms) {
  if (ms < 1) return `< 1${NARROW}ms`;
  return ms < 1000 ? `${Math.round(ms)}${NARROW}ms` : `${(ms / 1000).toFixed(1)}${NARROW}s`;
}

/** A size in bytes as kB or MB. */
export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))}${NARROW}kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)}${NARROW}MB`;
}

/** "a", "a or b", "a, b or c". */
export function oneOf(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
}

/** A message of the server as a sentence: "image: damaged image" becomes "Damaged image." */
export function sentence(text) {
  const plain = text.replace(/^(image|query \w+): /, "").trim();
  if (!plain) return "";
  const begun = plain[0].toUpperCase() + plain.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** The element with this id. */
export function at(id) {
  return document.getElementById(id);
}

/** Create an element with properties (also `dataset`, and attributes such as `aria-label`) and children. */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "dataset") Object.assign(made.dataset, value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
