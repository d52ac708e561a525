"use strict";
// Draws the interface from /openapi.json, with a form to try each operation. Text is set as text, never as markup.

const make = (tag, text, ...children) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
};

const resolve = (api, schema) => {
  if (!schema || !schema.$ref) return schema;
  return schema.$ref.slice(2).split("/").reduce((at, name) => at[name], api);
};

const exampleOf = (api, given) => {
  const schema = resolve(api, given);
  if (schema.example !== undefined) return schema.example;
  if (schema.enum) return schema.enum[0];
  if (schema.type !== "object") return schema.type === "array" ? [] : "";
  const oneWay = schema.oneOf ? schema.oneOf[0].required : [];
  const wanted = (schema.required || []).concat(oneWay);
  const chosen = wanted.length ? wanted : Object.keys(schema.properties);
  return Object.fromEntries(
    Object.entries(schema.properties).filter(([name]) => chosen.includes(name))
      .map(([name, property]) => [name, exampleOf(api, property)]));
};

const fieldsOf = (api, given, prefix = "") => {
  const schema = resolve(api, given);
  return Object.entries(schema.properties).flatMap(([name, property]) => {
    const inner = resolve(api, property);
    const needed = (schema.required || []).includes(name) ? "needed" : "";
    const says = property.description || inner.description || (inner.enum || []).join(", ");
    const row = make("tr", "", make("td", "", make("code", prefix + name)), make("td", needed), make("td", says));
    return inner.properties ? [row, ...fieldsOf(api, inner, `${prefix}${name}.`)] : [row];
  });
};

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const operation = (api, path, method, shared, details) => {
  const box = make("details", "", make("summary", "", make("b", method.toUpperCase()), make("code", path),
    make("span", ` ${details.summary}`)));
  box.dataset.operation = `${method} ${path}`;
  if (details.description) box.append(make("p", details.description));
  const inputs = {};
  for (const parameter of [...shared, ...(details.parameters || [])]) {
    const input = make("input");
    input.value = parameter.example || "";
    input.size = 40;
    inputs[parameter.name] = { input, where: parameter.in };
    box.append(make("p", "", make("label", `${parameter.name} `, input), make("br"),
      Object.assign(make("span", parameter.description), { className: "note" })));
  }
  const content = details.requestBody && details.requestBody.content["application/json"].schema;
  const body = content && make("textarea");
  if (content) {
    box.append(make("table", "", ...fieldsOf(api, content)));
    body.value = JSON.stringify(exampleOf(api, content), null, 1);
    body.spellcheck = false;
    box.append(body);
  }
  const send = make("button", "Send");
  const asked = make("pre");
  const answered = make("pre");
  answered.className = "answer";
  asked.hidden = answered.hidden = true;
  box.append(make("p", "", send), asked, answered);
  send.addEventListener("click", async () => {
    let address = path;
    const headers = {};
    const query = new URLSearchParams();
    for (const [name, { input, where }] of Object.entries(inputs)) {
      if (where === "path") address = address.replace(`{${name}}`, encodeURIComponent(input.value));
      else if (where === "query" && input.value) query.set(name, input.value);
      else if (input.value) headers[name] = input.value;
    }
    if (query.size) address += `?${query}`;
    if (body) headers["Content-Type"] = "application/json";
    const shown = Object.entries(headers).map(([name, value]) => ` -H ${quote(`${name}: ${value}`)}`).join("");
    const data = body ? ` -d ${quote(body.value)}` : "";
    asked.textContent = `curl -X ${method.toUpperCase()} ${quote(location.origin + address)}`
      + ` -H "Authorization: Bearer $API_KEY"${shown}${data}`;
    asked.hidden = answered.hidden = false;
    answered.textContent = "…";
    send.disabled = true;
    try {
      const key = document.getElementById("key").value.trim();
      if (key) headers.Authorization = `Bearer ${key}`;
      const response = await fetch(address, { method: method.toUpperCase(), headers, body: body && body.value });
      const text = await response.text();
      answered.classList.toggle("bad", !response.ok);
      let pretty = text;
      try { pretty = JSON.stringify(JSON.parse(text), null, 1); } catch { /* shown as it came */ }
      answered.textContent = `${response.status} ${response.statusText}\n${pretty}`;
    } catch (error) {
      answered.classList.add("bad");
      answered.textContent = `No answer: ${error.message}`;
    } finally {
      send.disabled = false;
    }
  });
  return box;
};

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = api.info.description;
  const main = document.getElementById("operations");
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, details] of Object.entries(methods)) {
      if (method !== "parameters") main.append(operation(api, path, method, methods.parameters || [], details));
    }
  }
});
