// The documentation of the HTTP API, rendered from openapi.json: each route with its parameters, an example, and a form
// that makes the request.

import { Trouble, ask } from "./api.js";
import { el } from "./format.js";
import { withKey } from "./keys.js";

const BODY_FIELD = "image";
const description = await (await ask("openapi.json")).json();

/** Text with `code` in backticks. */
function rich(text) {
  return text.split("`").map((part, place) => (place % 2 ? el("code", { textContent: part }) : part));
}

/** Follow a `$ref`. */
function resolve(schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.slice(2).split("/").reduce((tree, key) => tree[key], description);
}

/** An example of a value: the schema's own, or one made of its parts. */
function example(given) {
  const schema = resolve(given);
  if (schema.examples?.length) return schema.examples[0];
  if ("default" in schema) return schema.default;
  if (schema.anyOf) return example(schema.anyOf[0]);
  if (schema.enum) return schema.enum[0];
  if (schema.type === "array") return [example(schema.items)];
  if (schema.type === "object") {
    return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, part]) => [name, example(part)]));
  }
  return { string: "", integer: 0, number: 0, boolean: false }[schema.type] ?? null;
}

/** The type of a parameter, such as "integer, 1 or more". */
function typeOf(given) {
  const schema = resolve(given);
  if (schema.anyOf) return schema.anyOf.filter((part) => part.type !== "null").map(typeOf).join(" or ");
  if (schema.type === "array") return `${typeOf(schema.items)}, repeatable`;
  const least = schema.minimum === undefined ? "" : `, ${schema.minimum} or more`;
  return `${schema.type}${least}`;
}

function shown(value) {
  return value === null || value === undefined ? "" : `default ${value}`;
}

/** An element for each parameter, with its input. */
function parameterRow({ name, in: where, required, schema, description: text = "" }, route) {
  const isFlag = resolve(schema).type === "boolean";
  const input = el("input", {
    type: isFlag ? "checkbox" : "text", name, autocomplete: "off", required: Boolean(required), id: `${route}-${name}`,
    dataset: { in: where },
  });
  const details = [typeOf(schema), required ? "required" : shown(resolve(schema).default)].filter(Boolean).join(", ");
  return el("div", { className: "parameter" },
    el("label", { htmlFor: input.id }, el("code", { textContent: name }), el("span", { className: "fine", textContent: details })),
    input, el("p", { className: "fine" }, ...rich(text)));
}

/** Rows for the image in the body, if the route takes one. */
function bodyRow(body, route) {
  if (!body) return null;
  const schema = body.content["multipart/form-data"].schema.properties[BODY_FIELD];
  const isMany = schema.type === "array";
  const input = el("input", { type: "file", name: BODY_FIELD, accept: "image/*", multiple: isMany, id: `${route}-${BODY_FIELD}`, dataset: { in: "body" } });
  const details = `${isMany ? "one or more files" : "one file"}${body.required ? ", required" : ""}`;
  return el("div", { className: "parameter" },
    el("label", { htmlFor: input.id }, el("code", { textContent: BODY_FIELD }), el("span", { className: "fine", textContent: details })),
    input, el("p", { className: "fine" }, ...rich(`A form with files named \`${BODY_FIELD}\`, or one image as the body.`)));
}

/** A curl command for the route. */
function command(method, path, operation) {
  const url = new URL(path.replace("{id}", "1").slice(1), new URL("./", location.href));
  if (operation.requestBody) return `curl -F ${BODY_FIELD}=@photo.jpg ${url}`;
  return method === "get" ? `curl ${url}` : `curl -X ${method.toUpperCase()} ${url}`;
}

function responses(operation) {
  const [[status, good]] = Object.entries(operation.responses).filter(([code]) => code < 300);
  const schema = good.content?.["application/json"]?.schema;
  const text = resolve(schema).description ?? good.description;
  const errors = Object.entries(operation.responses).filter(([code]) => code >= 400);
  return [
    el("h3", { textContent: `Response ${status}` }), el("p", {}, ...rich(text)),
    schema ? el("pre", {}, el("code", { textContent: JSON.stringify(example(schema), null, 2) })) : null,
    errors.length ? el("details", {}, el("summary", { textContent: "Errors" }),
      el("dl", {}, ...errors.map(([code, error]) => el("div", {}, el("dt", { textContent: code }), el("dd", {}, ...rich(error.description)))))) : null,
  ];
}

/** Make the request that a form describes, and show its response. */
async function send(event, method, path, output) {
  event.preventDefault();
  const query = new URLSearchParams();
  let body;
  let filled = path;
  for (const input of event.target.querySelectorAll("input")) {
    const value = input.type === "checkbox" ? (input.checked ? "true" : "") : input.value.trim();
    if (input.dataset.in === "body") {
      if (!input.files.length) continue;
      body = new FormData();
      for (const file of input.files) body.append(BODY_FIELD, file);
    } else if (input.dataset.in === "path") filled = filled.replace(`{${input.name}}`, encodeURIComponent(value));
    else if (value) query.append(input.name, value);
  }
  const url = `${filled.slice(1)}${query.size ? `?${query}` : ""}`;
  const kind = method !== "get" && path.startsWith("/v1/items") ? "write" : "read";
  output.replaceChildren(el("p", { className: "fine", textContent: "Waiting for the response." }));
  try {
    const response = await withKey(kind, () => ask(url, { method: method.toUpperCase(), body, kind }));
    output.replaceChildren(el("p", { className: "fine", textContent: `Status ${response.status}` }), ...(await content(response)));
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    const status = error.status ? `Status ${error.status}: ` : "";
    output.replaceChildren(el("p", { textContent: `${status}${error.message} ${error.remedy}` }));
  }
}

async function content(response) {
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("image/")) return [el("img", { alt: "The response", src: URL.createObjectURL(await response.blob()) })];
  const text = await response.text();
  if (!text) return [];
  return [el("pre", {}, el("code", { textContent: type.startsWith("application/json") ? JSON.stringify(JSON.parse(text), null, 2) : text }))];
}

function article(method, path, operation) {
  const id = `${method}${path.replace(/\W+/g, "-")}`; // get-v1-about
  const output = el("div", { role: "status" });
  const form = el("form", {},
    ...(operation.parameters ?? []).map((parameter) => parameterRow(parameter, id)), bodyRow(operation.requestBody, id),
    el("p", {}, el("button", { className: "primary", textContent: "Send request" })));
  form.addEventListener("submit", (event) => send(event, method, path, output));
  return el("article", { id },
    el("h2", {}, el("span", { className: `method ${method}`, textContent: method.toUpperCase() }), el("code", { textContent: path })),
    el("p", {}, ...rich(operation.description ?? operation.summary)),
    el("pre", {}, el("code", { textContent: command(method, path, operation) })),
    el("details", {}, el("summary", { textContent: "Parameters and request" }), form, output),
    ...responses(operation).filter(Boolean));
}

const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ method, path, operation })));
const order = ({ path }) => (path.startsWith("/v1/") ? 0 : 1);
operations.sort((a, b) => order(a) - order(b));
const articles = operations.map(({ method, path, operation }) => article(method, path, operation));
document.getElementById("description").append(...rich(description.info.description));
document.getElementById("contents").append(el("ul", {}, ...operations.map(({ method, path, operation }, place) =>
  el("li", {}, el("a", { href: `#${articles[place].id}` }, `${method.toUpperCase()} ${path}`), el("span", { className: "fine", textContent: ` ${operation.summary}` })))));
document.getElementById("routes").append(...articles);
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
