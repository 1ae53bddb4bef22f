// Shows /openapi.json as a page. Nothing is loaded from elsewhere.

const make = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
};

const code = (text) => make("code", text);

function typeOf(schema, root) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((part) => typeOf(part, root)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {}, root)}`;
  if (schema.format === "binary") return "file";
  const bounds = [schema.minimum, schema.maximum].every((v) => v !== undefined) ? ` ${schema.minimum} to ${schema.maximum}` : "";
  return (schema.type ?? "any") + bounds;
}

function table(rows) {
  const body = make("tbody");
  for (const [name, type, text] of rows) body.append(make("tr", "", make("td", "", code(name)), make("td", type), make("td", text ?? "")));
  const head = make("thead", "", make("tr", "", ...["Name", "Type", "Meaning"].map((title) => Object.assign(make("th", title), { scope: "col" }))));
  const frame = make("div", "", make("table", "", head, body));
  frame.className = "scroll";
  return frame;
}

function example(path, method, operation) {
  const address = location.origin + path;
  const form = operation.requestBody?.content?.["multipart/form-data"];
  if (form) return `curl -F image=@photo.jpg ${path.endsWith("detect") ? '-F "names=mug,kite" ' : ""}${address}`;
  const needed = (operation.parameters ?? []).filter((p) => p.required).map((p) => `${p.name}=${encodeURIComponent(p.schema.examples?.[0] ?? "")}`);
  return `curl "${address}${needed.length ? `?${needed.join("&")}` : ""}"`;
}

function operationCard(path, method, operation, root) {
  const verb = make("span", method.toUpperCase());
  verb.className = "verb";
  const card = make("article", "", make("h3", "", verb, code(path), operation.summary ?? ""));
  card.className = "card";
  if (operation.parameters?.length) {
    const form = operation.requestBody ? "Parameters, in the form or in the query" : "Parameters";
    card.append(make("h4", form), table(operation.parameters.map((p) => [p.name, typeOf(p.schema, root), p.description])));
  }
  if (operation.requestBody) card.append(make("h4", "Body"), make("p", Object.keys(operation.requestBody.content).join(", ")));
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  const named = answer?.$ref && root.components.schemas[answer.$ref.split("/").pop()];
  if (named) card.append(make("h4", "Answer"), table(Object.entries(named.properties).map(([name, s]) => [name, typeOf(s, root), s.description])));
  const refused = Object.entries(operation.responses).filter(([status]) => status !== "200");
  if (refused.length) card.append(make("h4", "Refusals"), table(refused.map(([status, r]) => [status, "Failure", r.description])));
  card.append(make("h4", "Try"), make("pre", example(path, method, operation)));
  return card;
}

const root = await (await fetch("/openapi.json")).json();
const tags = new Map();
for (const [path, operations] of Object.entries(root.paths))
  for (const [method, operation] of Object.entries(operations)) {
    const tag = operation.tags?.[0] ?? "other";
    tags.set(tag, [...(tags.get(tag) ?? []), operationCard(path, method, operation, root)]);
  }
const sections = [...tags].flatMap(([tag, cards]) => [make("h2", tag[0].toUpperCase() + tag.slice(1)), ...cards]);
document.getElementById("docs").replaceChildren(make("p", root.info.summary), ...sections);
