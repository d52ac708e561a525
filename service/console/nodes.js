// Makes elements. Text becomes text nodes and nothing here reads markup, so no value can become a part of the page.

export const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};

// A table with a caption; each cell knows its column's name, which a narrow screen shows beside it. The roles are said
// as well, for a table that is laid out otherwise keeps them so.
export const table = (caption, columns, rows, captionKind = "quiet") => make("table", { role: "table" },
  make("caption", { class: captionKind }, caption),
  make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
    columns.map((column) => make("th", { scope: "col", role: "columnheader" }, column)))),
  make("tbody", { role: "rowgroup" }, rows.map(({ cells, kind }) => make("tr", { class: kind, role: "row" },
    cells.map((cell, index) => make(index === 0 ? "th" : "td", {
      "data-column": columns[index], ...(index === 0 ? { scope: "row", role: "rowheader" } : { role: "cell" }),
    }, make("span", null, cell)))))));

export const badge = (kind, text) => make("span", { class: `badge ${kind}` }, text);

export const facts = (kind, pairs) => make("dl", { class: kind }, pairs.map(([term, value]) =>
  make("div", null, make("dt", null, term), make("dd", null, value))));

// Asks before a step that counts; resolves to whether it was confirmed.
export const ask = (title, paragraphs, confirm, cancel) => new Promise((resolve) => {
  const heading = make("h2", { id: "asked" }, title);
  const dialog = make("dialog", { "aria-labelledby": "asked" }, heading, paragraphs.map((text) => make("p", null, text)),
    make("div", { class: "actions" },
      make("button", { type: "button", class: "primary", "data-action": "confirm", onclick: () => dialog.close("yes") }, confirm),
      make("button", { type: "button", "data-action": "cancel", autofocus: true, onclick: () => dialog.close("") }, cancel)));
  dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "yes");
  });
  document.body.append(dialog);
  dialog.showModal();
});
