"use strict";
// Tables that can be sorted, searched and downloaded. All values become text nodes, never markup.
(() => {
  const PAGE = 100;

  const show = (value) => {
    if (value === null) return "–";
    if (typeof value === "string") return value;
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) {
      const [mantissa, exponent] = value.toExponential(2).split("e");
      return `${Number(mantissa)}e${Number(exponent)}`;
    }
    return size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  const field = (value) => {
    const text = value === null ? "" : String(value);
    const formula = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // no formulas in sheets
    return /[",\r\n]/.test(formula) ? `"${formula.replaceAll('"', '""')}"` : formula;
  };

  const enhance = (box) => {
    const data = JSON.parse(box.querySelector("script").textContent);
    const n = data.values.length ? data.values[0].length : 0;
    const body = box.querySelector("tbody");
    const heads = [...box.querySelectorAll("thead th")];
    const count = box.querySelector(".count");
    const whole = count.textContent;
    const searched = data.numeric.flatMap((numeric, column) => (numeric ? [] : [data.values[column]]));
    let order = Array.from({ length: n }, (_, row) => row);
    let shown = order;
    let limit = body.rows.length;

    const more = element("button", { type: "button", className: "action more", textContent: "Show more" });
    const draw = () => {
      const rows = shown.slice(0, limit).map((row) =>
        element("tr", {}, ...data.values.map((values, column) =>
          element("td", { className: data.numeric[column] ? "n" : "", textContent: show(values[row]) }))));
      body.replaceChildren(...rows);
      more.hidden = shown.length <= limit;
      count.textContent = shown.length === n ? whole : `${shown.length.toLocaleString("en-US")} of ${whole}`;
    };
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      shown = !words.length ? order : order.filter((row) =>
        words.every((word) => searched.some((values) => (values[row] ?? "").toLowerCase().includes(word))));
      draw();
    };
    const sort = (column) => {
      const head = heads[column];
      const first = data.numeric[column] ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? second : first;
      const sign = direction === "ascending" ? 1 : -1;
      const values = data.values[column];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      order.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (x === null || y === null) return (x === null) - (y === null) || a - b; // what is missing comes last
        const side = data.numeric[column] ? x - y : x.localeCompare(y);
        return sign * side || a - b;
      });
      filter();
    };

    const search = element("input", { type: "search", placeholder: "Search", ariaLabel: "Search this table" });
    const download = element("button", { type: "button", className: "action", textContent: "CSV" });
    search.addEventListener("input", filter);
    more.addEventListener("click", () => { limit += PAGE; draw(); });
    download.addEventListener("click", () => {
      const lines = [data.columns.map(field).join(",")];
      shown.forEach((row) => lines.push(data.values.map((values) => field(values[row])).join(",")));
      const url = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
      element("a", { href: url, download: `${data.name}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
    heads.forEach((head, column) => {
      const button = element("button", { type: "button", textContent: head.textContent, title: "Sort" });
      button.addEventListener("click", () => sort(column));
      head.replaceChildren(button);
    });
    const bar = box.querySelector(".bar");
    if (searched.length) bar.append(search);
    bar.append(download);
    box.append(more);
    draw();
  };

  document.querySelectorAll("[data-table]").forEach(enhance);
})();
