// The tables of everything, which sort and filter, and the dialog that opens a row, a cell or a pair.
// --- tables. A cell is [sort, text, sub, tip, low, high]; 0 stands for a missing one
const MISSING = [null, "–"];
class Grid {
  constructor(box) {
    this.box = box;
    this.name = box.dataset.name;
    this.sets = DATA.tables[box.dataset.table];
    this.use(0);
    this.controls = make("div", { class: "controls" });
    this.body = make("div");
    box.append(this.controls, this.body);
    this.drawControls();
    this.draw();
  }
  use(index) {
    this.setIndex = index;
    this.set = this.sets[index];
    this.index = Object.fromEntries(this.set.columns.map((c, i) => [c.key, i]));
    this.sort = this.set.sort || null;
    this.filters = {};
    this.search = "";
    this.page = 0;
    this.view = this.set.views.length ? this.set.views[0][0] : "";
  }
  cell(row, key) { return row[this.index[key]] || MISSING; }
  drawControls() {
    const kids = [];
    if (this.sets.length > 1) {
      kids.push(this.select("Rows", this.sets.map((s, i) => [String(i), s.name]), String(this.setIndex), (v) => {
        this.use(Number(v)); this.drawControls(); this.draw(); this.controls.querySelector("select").focus();
      }));
    }
    if (this.set.views.length > 1) kids.push(this.select("Columns", this.set.views, this.view, (v) => { this.view = v; this.draw(); }));
    for (const key of this.set.facets) {
      const values = new Map();
      for (const row of this.set.rows) { const c = this.cell(row, key); values.set(c[1], c[0]); }
      if (values.size < 2 || values.size > 400) continue;
      const sorted = [...values.entries()].sort((a, b) => compare(a[1], b[1], 1));
      const label = this.set.columns[this.index[key]].label;
      kids.push(this.select(label, [["", "all"], ...sorted.map(([text]) => [text, text])], "", (v) => {
        this.filters[key] = v; this.page = 0; this.draw();
      }));
    }
    const input = make("input", { type: "search", placeholder: "any text", oninput: () => { this.search = input.value.toLowerCase(); this.page = 0; this.draw(); } });
    kids.push(make("label", {}, "Search", input));
    this.count = make("span", { class: "count" });
    kids.push(this.count);
    this.controls.replaceChildren(...kids);
  }
  select(label, options, value, change) {
    const node = make("select", { onchange: () => change(node.value) }, options.map(([v, text]) => make("option", { value: v, text })));
    node.value = value;
    return make("label", {}, label, node);
  }
  columns() {
    const shown = this.set.columns.filter((c) => c.group === "always" || this.view === "all" || c.views.includes(this.view));
    return shown.filter((c) => !c.optional || this.varies(c.key));
  }
  varies(key) {
    this.set.varied ??= {};
    return (this.set.varied[key] ??= new Set(this.set.rows.map((r) => this.cell(r, key)[1])).size > 1);
  }
  rows() {
    const active = Object.entries(this.filters).filter(([, v]) => v !== "");
    let rows = this.set.rows.map((row, i) => [row, i]);
    if (active.length) rows = rows.filter(([row]) => active.every(([key, v]) => this.cell(row, key)[1] === v));
    if (this.search) {
      const words = this.search.split(/\s+/).filter(Boolean);
      rows = rows.filter(([row]) => {
        const text = row.map((c) => (c ? c[1] + " " + (c[2] || "") : "")).join(" ").toLowerCase();
        return words.every((w) => text.includes(w));
      });
    }
    if (this.sort) {
      const [key, direction] = this.sort;
      const at = this.index[key];
      rows.sort((a, b) => compare((a[0][at] || MISSING)[0], (b[0][at] || MISSING)[0], direction) || a[1] - b[1]);
    }
    return rows;
  }
  draw(all = false) {
    const started = performance.now();
    const columns = this.columns();
    const rows = this.rows();
    const size = all ? Math.max(rows.length, 1) : this.set.pageSize;
    const pages = Math.max(1, Math.ceil(rows.length / size));
    this.page = Math.min(this.page, pages - 1);
    const shown = rows.slice(this.page * size, (this.page + 1) * size);
    this.scales = {};
    const head = make("tr", {}, columns.map((c) => {
      const on = this.sort && this.sort[0] === c.key;
      const button = make("button", { type: "button", text: c.label, "data-key": c.key, "data-tip": c.title || null, onclick: () => this.sortBy(c) });
      return make("th", { scope: "col", class: c.num ? "n" : null, "aria-sort": on ? (this.sort[1] > 0 ? "ascending" : "descending") : "none" }, button);
    }));
    const table = make("table", {}, make("caption", { class: "sr", text: this.name }), make("thead", {}, head),
      make("tbody", {}, shown.map(([row, i]) => this.row(row, i, columns))));
    const focusKey = this.body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const scrollLeft = this.scroll ? this.scroll.scrollLeft : 0;
    this.scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": this.name + ", scrolls sideways" }, table);
    this.body.replaceChildren(this.scroll, this.pager(rows.length, pages, size));
    this.scroll.scrollLeft = scrollLeft;
    if (focusKey) { const again = [...this.body.querySelectorAll("thead button")].find((b) => b.dataset.key === focusKey); if (again) again.focus({ preventScroll: true }); }
    this.count.textContent = rows.length === this.set.rows.length ? `${rows.length} rows` : `${rows.length} of ${this.set.rows.length} rows`;
    this.box.dataset.drawMs = (performance.now() - started).toFixed(1);
  }
  row(row, i, columns) {
    const dense = this.set.opens && this.cell(row, "sparsity")[1] === "dense";
    return make("tr", { class: dense ? "dense" : null, "data-row": i }, columns.map((c, n) => {
      const cell = this.cell(row, c.key);
      if (n === 0) {
        const inner = this.set.opens
          ? make("button", { type: "button", text: cell[1], "data-tip": cell[3] || null, onclick: () => openDetail(this.set.opens, this.set.ids[i]) })
          : make("span", { text: cell[1], "data-tip": cell[3] || null });
        const status = this.index.status === undefined ? MISSING : this.cell(row, "status");
        const pill = status[0] !== null && status[0] !== "done" ? make("span", { class: "status s-" + status[1].replaceAll(" ", "-"), text: status[1], "data-tip": status[3] || null }) : null;
        return make("th", { scope: "row" }, inner, cell[2] ? make("span", { class: "sub", text: cell[2] }) : null, pill);
      }
      const td = make("td", { class: [c.num ? "n" : "", c.wrap ? "wrap" : ""].join(" ").trim() || null, "data-tip": cell[3] || null });
      if (c.key === "status") td.append(make("span", { class: "status s-" + String(cell[1]).replaceAll(" ", "-"), text: cell[1] }));
      else {
        const rank = c.rank ? this.cell(row, c.rank) : MISSING;
        if (rank[1] !== "–") td.append(make("span", { class: rank[0] === null ? "rank none" : "rank", text: rank[1], "data-tip": rank[3] || c.rankTip }));
        td.append(cell[1]);
      }
      if (cell[2]) td.append(make("span", { class: "sub", text: cell[2] }));
      if (c.bar && cell.length > 5) td.append(this.interval(c.key, cell));
      return td;
    }));
  }
  interval(key, cell) {
    const log = this.set.columns[this.index[key]].bar === "log";
    const f = (v) => (log ? Math.log(Math.max(v, 1e-9)) : v);
    const scale = (this.scales[key] ??= (() => {
      let low = Infinity, high = -Infinity;
      for (const row of this.set.rows) { const c = row[this.index[key]]; if (c && c.length > 5) { low = Math.min(low, f(c[4])); high = Math.max(high, f(c[5])); } }
      return [low, Math.max(high - low, 1e-12)];
    })());
    const at = (v) => (100 * (f(v) - scale[0])) / scale[1];
    const bar = make("i"), dot = make("b");
    bar.style.left = at(cell[4]) + "%"; bar.style.width = at(cell[5]) - at(cell[4]) + "%"; dot.style.left = at(cell[0]) + "%";
    return make("span", { class: "ci", "aria-hidden": "true" }, bar, dot);
  }
  sortBy(column) {
    const first = column.num && !column.lower ? -1 : 1;
    this.sort = this.sort && this.sort[0] === column.key ? [column.key, -this.sort[1]] : [column.key, first];
    this.page = 0;
    this.draw();
    live.textContent = `${this.name} sorted by ${column.label}, ${this.sort[1] > 0 ? "ascending" : "descending"}`;
  }
  pager(total, pages, size) {
    if (pages < 2) return make("div", { class: "pager" }, total ? null : "No row matches; clear a filter.");
    const go = (to, label) => make("button", { type: "button", text: label, disabled: to < 0 || to >= pages || to === this.page, onclick: () => {
      this.page = to; this.draw(); this.scroll.focus({ preventScroll: true });
    } });
    return make("div", { class: "pager" }, go(0, "First"), go(this.page - 1, "Previous"), go(this.page + 1, "Next"), go(pages - 1, "Last"),
      make("span", { text: `rows ${this.page * size + 1} to ${Math.min((this.page + 1) * size, total)} of ${total}` }));
  }
}
// --- details: the record itself, unpacked when asked for
const chunks = [...document.querySelectorAll("script.chunk")];
const unpacked = new Map();
const record = async (i) => {
  const c = Math.floor(i / DATA.chunkSize);
  if (!unpacked.has(c)) {
    let text = chunks[c].textContent;
    if (chunks[c].dataset.encoding === "gzip") {
      const bytes = Uint8Array.from(atob(text.trim()), (ch) => ch.charCodeAt(0));
      text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    }
    unpacked.set(c, JSON.parse(text));
  }
  return unpacked.get(c)[i % DATA.chunkSize];
};
const dialog = $("detail"), body = $("detail-body");
let opener = null;
const openDetail = async (kind, id) => {
  if (!dialog.open) opener = document.activeElement;
  const cells = kind === "entry" ? DATA.entries[id] : [id];
  const records = await Promise.all(cells.slice(0, 200).map(record));
  const entry = kind === "entry" ? id : DATA.entries.findIndex((list) => list.includes(id));
  body.replaceChildren(...detail(entry, kind, cells, records));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
};
dialog.addEventListener("close", () => { if (opener && opener.isConnected) opener.focus(); });
dialog.addEventListener("click", (e) => { if (e.target === dialog) dialog.close(); });
const openPair = (i) => {
  if (!dialog.open) opener = document.activeElement;
  const set = DATA.tables.pairs[0], row = set.rows[i];
  const value = (key) => { const c = row[set.columns.findIndex((x) => x.key === key)] || MISSING; return [c[1], c[2] || ""]; };
  const said = value("verdict")[0];
  const out = [make("h2", { id: "detail-title", text: `${value("a")[0]} against ${value("b")[0]}` }), make("p", { class: "banner pairverdict" }, said)];
  out.push(facts(set.columns.filter((c) => !["a", "b", "verdict"].includes(c.key)).map((c) => [c.label, value(c.key).join(" ").trim()])));
  const tasks = set.tasks[i];
  if (tasks) {
    out.push(make("h3", { text: "By task: exact McNemar tests" }));
    out.push(simpleTable("Tasks", [["Task"], [`only ${value("a")[0]} right`, true], [`only ${value("b")[0]} right`, true], ["p", true], ["Holm p", true]], tasks));
  }
  body.replaceChildren(...out);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
};
const facts = (pairs) => make("dl", { class: "facts" }, pairs.filter(([, v]) => v !== undefined && v !== null && v !== "").map(([k, v]) =>
  make("div", {}, make("dt", { text: k }), make("dd", { text: String(v) }))));
const simpleTable = (name, heads, rows) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
  make("table", {}, make("caption", { class: "sr", text: name }), make("thead", {}, make("tr", {}, heads.map(([h, n]) => make("th", { scope: "col", class: n ? "n" : null }, make("span", { class: "h", text: h }))))),
    make("tbody", {}, rows.map((r) => make("tr", {}, r.map((v, i) => i === 0 ? make("th", { scope: "row", text: v }) : make("td", { class: heads[i][1] ? "n" : heads[i][2] ? "wrap" : null, text: v })))))));
const detail = (entry, kind, cells, records) => {
  const main = DATA.tables.main[0];
  const at = main.ids.indexOf(entry);
  const row = at >= 0 ? main.rows[at] : [];
  const r = records[0];
  const out = [make("h2", { id: "detail-title", text: DATA.titles[entry] + (kind === "cell" ? `, seed ${r.run.seed}` : "") })];
  if (r.run.synthetic) out.push(make("p", { class: "banner" }, "Synthetic record: made by a script, not a measurement."));
  if (r.run.status !== "done") out.push(make("p", { class: "banner" }, make("strong", { text: r.run.status.replaceAll("_", " ") }), " ", r.run.reason || "no reason recorded"));
  const value = (key) => { const c = row[main.columns.findIndex((x) => x.key === key)]; return c ? `${c[1]} ${c[2] || ""}`.trim() : null; };
  const listed = main.columns.filter((c) => !c.key.includes("|") && c.key !== "method");
  out.push(facts(listed.map((c) => [c.label, value(c.key)])));
  for (const [suite, name] of DATA.suites) {
    const columns = main.columns.filter((c) => c.key.startsWith(suite + "|"));
    const rows = columns.map((c) => [c, row[main.columns.indexOf(c)]]).filter(([, c]) => c);
    if (!rows.length) continue;
    out.push(make("h3", { text: name }));
    out.push(simpleTable(name, [["What"], ["Value", true], ["About", false, true]], rows.map(([c, v]) =>
      [c.key.endsWith("|mean") ? "suite score" : c.key.endsWith("|rank") ? "rank" : c.label, `${v[1]} ${v[2] || ""}`.trim(), v[3] || c.title || ""])));
  }
  const pairs = DATA.tables.pairs && DATA.tables.pairs[0];
  if (pairs) {
    const mine = pairs.rows.filter((_, i) => pairs.pair[i].includes(entry));
    if (mine.length) {
      out.push(make("h3", { text: "Against the others" }));
      const keys = ["a", "b", "suite", "difference", "p", "verdict", "test"];
      out.push(simpleTable("Comparisons", keys.map((k) => { const c = pairs.columns.find((x) => x.key === k); return [c.label, c.num, c.wrap]; }),
        mine.slice(0, 60).map((p) => keys.map((k) => { const c = p[pairs.columns.findIndex((x) => x.key === k)] || MISSING; return `${c[1]} ${c[2] || ""}`.trim(); }))));
    }
  }
  if (r.metrics.shapes.length) { out.push(make("h3", { text: "Shape" })); out.push(shape(r)); }
  const curves = Object.entries(r.metrics.curves);
  if (curves.length) { out.push(make("h3", { text: "Training curves" })); out.push(make("div", { class: "minis" }, curves.map(([name, points]) => curve(name, points)))); }
  out.push(make("h3", { text: cells.length > 1 ? `Cells (${cells.length} seeds)` : "Cell" }));
  records.forEach((rec, i) => out.push(cellBlock(rec, i === 0)));
  if (cells.length > records.length) out.push(make("p", { class: "fine", text: `${cells.length - records.length} more cells are in the table, rows "every cell".` }));
  return out;
};
const cellBlock = (r, open) => {
  const run = r.run, p = r.provenance;
  const status = run.status.replaceAll("_", " ");
  const command = make("pre", { text: run.command || "not recorded" });
  const copy = make("button", { type: "button", text: "Copy", onclick: async () => {
    try { await navigator.clipboard.writeText(run.command); } catch { getSelection().selectAllChildren(command); }
    copy.textContent = "Copied"; live.textContent = "Command copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } });
  const stages = run.stages.map((s) => `${s.name} ${s.seconds.toFixed(1)} s`).join(", ");
  const file = (label, value) => make("details", {}, make("summary", { text: label }), make("pre", { text: JSON.stringify(value, null, 1) }));
  return make("details", { open }, make("summary", { text: `${run.cell_id}, seed ${run.seed}, ${status}` }),
    facts([["Status", status], ["Reason", run.reason], ["Started", run.started_at], ["Finished", run.finished_at], ["Stages", stages],
      ["Commit", p.commit ? p.commit.slice(0, 12) + (p.dirty ? " (changed)" : "") : ""], ["Machine", [p.cpu, p.gpu].filter(Boolean).join(", ")], ["Threads", p.threads], ["Masks SHA-256", p.masks_sha256]]),
    make("p", { class: "fine", text: "The command that makes this record again:" }), make("div", { class: "copyrow" }, command, run.command ? copy : null),
    file("Configuration", run.config), file("Scores as recorded", r.metrics.scores), file("Provenance", p));
};
const shape = (r) => {
  const layers = r.metrics.shapes, w = 600, h = 130, step = (w - 40) / layers.length;
  const label = `Kept share of each of ${layers.length} layers`;
  const pic = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label });
  for (const y of [0, 50, 100]) {
    const line = svg("line", { x1: 34, x2: w, y1: 112 - y, y2: 112 - y, stroke: "var(--plot-grid)" });
    const text = svg("text", { x: 28, y: 116 - y, "text-anchor": "end", "font-size": 10, fill: "var(--plot-muted)" }, y + " %");
    pic.append(line, text);
  }
  layers.forEach((s, i) => {
    const ffn = s.mlp ? (100 * s.ffn_kept) / Math.max(1, s.ffn_total) : 0, kv = s.attn ? (100 * s.kv_groups_kept) / Math.max(1, s.kv_groups_total) : 0;
    const x = 38 + i * step;
    const g = svg("g", { "data-tip": `layer ${s.layer}: ${s.kv_groups_kept}/${s.kv_groups_total} KV groups, ${s.q_heads_kept}/${s.q_heads_total} query heads, ${s.ffn_kept}/${s.ffn_total} MLP channels` });
    g.append(svg("rect", { x, width: step * 0.44, y: 112 - kv, height: Math.max(kv, 0.5), fill: "var(--c1)" }), svg("rect", { x: x + step * 0.46, width: step * 0.44, y: 112 - ffn, height: Math.max(ffn, 0.5), fill: "var(--c0)" }));
    pic.append(g);
    if (layers.length <= 40 || i % 5 === 0) pic.append(svg("text", { x: x + step * 0.45, y: 126, "text-anchor": "middle", "font-size": 9, fill: "var(--plot-muted)" }, String(s.layer)));
  });
  const hidden = r.metrics.hidden_total ? ` Residual width ${r.metrics.hidden_kept} of ${r.metrics.hidden_total}.` : "";
  return make("figure", { class: "mini" }, pic, make("figcaption", { text: `Per layer: KV groups (orange) and MLP channels (blue) kept.${hidden}` }));
};
const curve = (name, points) => {
  const good = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const w = 240, h = 110;
  const pic = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${name} over steps` });
  let range = "";
  if (good.length) {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of good) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
    const fx = (x) => 6 + ((w - 12) * (x - x0)) / Math.max(x1 - x0, 1e-12), fy = (y) => h - 8 - ((h - 16) * (y - y0)) / Math.max(y1 - y0, 1e-12);
    pic.append(svg("polyline", { points: good.map(([x, y]) => `${fx(x).toFixed(1)},${fy(y).toFixed(1)}`).join(" "), fill: "none", stroke: "var(--c0)", "stroke-width": 1.6 }));
    range = `: ${y0.toPrecision(3)} to ${y1.toPrecision(3)}, steps ${x0} to ${x1}`;
  }
  const lost = points.length - good.length;
  return make("figure", { class: "mini" }, pic, make("figcaption", { text: name + range + (lost ? `; ${lost} values are not finite` : "") }));
};
