// One race at a time: the race bar, its table, the matrix, and the charts that are drawn from its points.
const races = DATA.races;
const bar = $("race");
let current = DATA.first;
const COORDINATES = ["Model", "Sparsity", "Track", "Suite"];

const show = (index, told = false) => {
  current = index;
  document.querySelectorAll(".of-race").forEach((part) => { part.hidden = Number(part.dataset.race) !== index; });
  drawBar();
  drawLines();
  drawTradeoff();
  if (told) {
    history.replaceState(null, "", "#race=" + encodeURIComponent(races[index].hash));
    live.textContent = document.querySelector(`.answer[data-race="${index}"] h2`).textContent;
  }
};
const fromHash = () => {
  const wanted = location.hash.startsWith("#race=") ? decodeURIComponent(location.hash.slice(6)) : null;
  return wanted === null ? -1 : races.findIndex((r) => r.hash === wanted);
};
// Of the races with the wanted coordinate the one that shares most others with the present one.
const choose = (which, value) => {
  const now = races[current].at;
  const shared = (at) => at.filter((v, i) => v === now[i]).length;
  let best = -1;
  races.forEach((r, i) => { if (r.at[which] === value && (best < 0 || shared(r.at) > shared(races[best].at))) best = i; });
  show(best, true);
};
const drawBar = () => {
  const focused = document.activeElement && bar.contains(document.activeElement) ? document.activeElement.dataset.which : null;
  bar.replaceChildren(...COORDINATES.map((label, which) => {
    const values = [...new Set(races.map((r) => r.at[which]))];
    // What the other choices leave possible comes first; the rest changes them too.
    const fits = (v) => races.some((r) => r.at[which] === v && r.at.every((w, i) => i >= which || w === races[current].at[i]));
    const options = [...values.filter(fits).map((v) => make("option", { value: v, text: v })), ...values.filter((v) => !fits(v)).map((v) => make("option", { value: v, text: v + " *" }))];
    const node = make("select", { "data-which": String(which), onchange: () => choose(which, node.value) }, options);
    node.value = races[current].at[which];
    node.disabled = values.length < 2;
    return make("label", {}, make("span", { text: label }), node);
  }));
  bar.hidden = false;
  root.style.setProperty("--top", document.querySelector(".top").offsetHeight + "px");
  if (focused !== null) { const again = bar.querySelector(`[data-which="${focused}"]`); if (again) again.focus({ preventScroll: true }); }
};

// --- the table of a race: sorts by a heading, folds the ablations under their method
const sortRace = (table, head) => {
  const index = [...head.parentNode.children].indexOf(head);
  const turned = head.getAttribute("aria-sort");
  const direction = turned ? (turned === "ascending" ? -1 : 1) : head.dataset.low === "1" || index === 0 ? 1 : -1;
  table.querySelectorAll("thead th").forEach((th) => th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const tbody = table.tBodies[0], rows = [...tbody.rows];
  const value = (row) => { const cell = row.cells[index]; return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? null : Number(cell.dataset.v); };
  const order = (list) => list.map((r, i) => [r, i]).sort((a, b) => compare(value(a[0]), value(b[0]), direction) || a[1] - b[1]).map(([r]) => r);
  const mains = order(rows.filter((r) => !r.dataset.of));
  for (const row of mains) tbody.append(row, ...order(rows.filter((r) => r.dataset.of === row.dataset.entry)));
  live.textContent = `Sorted by ${head.textContent.trim()}, ${head.getAttribute("aria-sort")}`;
};
document.querySelectorAll("table.race").forEach((table) => {
  table.querySelectorAll("thead th").forEach((th) => {
    const button = make("button", { type: "button", "data-tip": th.dataset.tip || null }, th.textContent);
    button.addEventListener("click", () => sortRace(table, th));
    th.removeAttribute("data-tip");
    th.replaceChildren(button);
  });
  table.querySelectorAll(".fold").forEach((button) => {
    const fold = (open) => {
      button.setAttribute("aria-expanded", String(open));
      table.querySelectorAll(`tr[data-of="${button.dataset.fold}"]`).forEach((row) => { row.hidden = !open; });
    };
    button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") !== "true"));
    fold(false);
  });
});
document.addEventListener("click", (e) => {
  const target = e.target.closest && e.target.closest("[data-open], [data-pair]");
  if (!target) return;
  if (target.dataset.pair !== undefined) openPair(Number(target.dataset.pair));
  else openDetail("entry", Number(target.dataset.open));
});

// --- charts. A point is [entry, line, label, value, low, high, text, share removed]
const MOST_LINES = 8;
const shownValue = (r, v) => (r.kind === "percent" ? 100 * v : v);
const compact = (v) => {
  const a = Math.abs(v);
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (a >= size) return String(Number((v / size).toPrecision(3))) + unit;
  return String(Number(v.toPrecision(3)));
};
const ticks = (low, high, log, count = 5) => {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) { const v = m * 10 ** e; if (v >= low && v <= high) found.push(v); }
    return found.length > 7 ? found.filter((v) => /^1/.test(v.toExponential())) : found;
  }
  const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
  const step = size * ([1, 2, 5, 10].find((m) => m * size >= raw) || 10);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Number(v.toPrecision(12)));
  return found;
};
const canvas = (box, label, xs, ys, names, logX, logY, right) => {
  const w = Math.max(300, box.clientWidth), h = Math.round(Math.min(430, Math.max(270, w * 0.6)));
  const pad = { l: 52, r: right, t: 12, b: 42 };
  const f = (v, log) => (log ? Math.log10(v) : v);
  const span = (list, log) => {
    let low = Math.min(...list.map((v) => f(v, log))), high = Math.max(...list.map((v) => f(v, log)));
    const room = Math.max((high - low) * 0.06, Math.abs(high) * 1e-3, 1e-9);
    return [low - room, high + room];
  };
  const [x0, x1] = span(xs, logX), [y0, y1] = span(ys, logY);
  const x = (v) => pad.l + ((f(v, logX) - x0) / (x1 - x0)) * (w - pad.l - pad.r), y = (v) => h - pad.b - ((f(v, logY) - y0) / (y1 - y0)) * (h - pad.t - pad.b);
  const pic = svg("svg", { viewBox: `0 0 ${w} ${h}`, width: w, height: h, role: "group", "aria-label": label });
  const back = (v, log) => (log ? 10 ** v : v);
  for (const v of ticks(back(y0, logY), back(y1, logY), logY)) {
    pic.append(svg("line", { x1: pad.l, x2: w - pad.r, y1: y(v), y2: y(v), stroke: "var(--plot-grid)" }), svg("text", { x: pad.l - 6, y: y(v) + 4, "text-anchor": "end", class: "tick" }, compact(v)));
  }
  for (const v of ticks(back(x0, logX), back(x1, logX), logX, w < 420 ? 3 : 5)) pic.append(svg("text", { x: x(v), y: h - pad.b + 16, "text-anchor": "middle", class: "tick" }, compact(v)));
  pic.append(svg("text", { x: pad.l + (w - pad.l - pad.r) / 2, y: h - 6, "text-anchor": "middle", class: "axis" }, names[0]), svg("text", { x: 14, y: pad.t + (h - pad.t - pad.b) / 2, "text-anchor": "middle", class: "axis", transform: `rotate(-90 14 ${pad.t + (h - pad.t - pad.b) / 2})` }, names[1]));
  return { pic, x, y, w, h, pad };
};
const colour = (line) => (line < 0 ? "var(--plot-ink)" : `var(--c${line % 8})`);
// Labels one below the other where their points lie too close together.
const spread = (labels, top, bottom, gap = 14) => {
  labels.sort((a, b) => a.y - b.y);
  for (let i = 0; i < labels.length; i++) labels[i].at = Math.max(labels[i].y, i ? labels[i - 1].at + gap : top);
  for (let i = labels.length - 1, limit = bottom; i >= 0; i--, limit = labels[i + 1].at - gap) labels[i].at = Math.min(labels[i].at, limit);
};
const cut = (text, room) => (text.length * 6.3 > room ? text.slice(0, Math.max(4, Math.floor(room / 6.3) - 1)) + "…" : text);
const mark = (x, y, line, tip, size = 4.5) => {
  const g = svg("g", { class: "tip", tabindex: "0", role: "img", "aria-label": tip, "data-tip": tip });
  g.append(line < 0 ? svg("path", { d: `M${x} ${y - 7}l2 5h5l-4 3 1.500 5-4.500-3-4.500 3 1.500-5-4-3h5z`, fill: colour(line) }) : svg("circle", { cx: x, cy: y, r: size, fill: colour(line), stroke: "var(--panel)" }));
  return g;
};

const drawLines = () => {
  const figure = $("lines"), box = figure.querySelector(".canvas"), r = races[current];
  const siblings = races.filter((o) => [0, 2, 3, 4].every((i) => o.key[i] === r.key[i]));
  const dense = r.points.find((p) => p[1] < 0);
  const here = r.points.filter((p) => p[1] >= 0 && p[3] !== null);
  const lines = new Map();
  for (const p of here) lines.set(p[1], []);
  for (const o of siblings) for (const p of o.points) if (p[1] >= 0 && p[3] !== null) { if (!lines.has(p[1])) lines.set(p[1], []); lines.get(p[1]).push(p); }
  const drawn = [...lines.entries()].slice(0, MOST_LINES);
  const every = drawn.flatMap(([, points]) => points);
  figure.hidden = !every.length;
  if (figure.hidden) return;
  const log = r.kind === "perplexity", v = (n) => shownValue(r, n);
  const ys = [...every, ...(dense ? [dense] : [])].flatMap((p) => [p[3], p[4], p[5]]).filter((n) => n !== null && (!log || n > 0)).map(v);
  if (r.chance !== null) ys.push(v(r.chance));
  const room = Math.min(190, 0.32 * Math.max(300, box.clientWidth));
  const c = canvas(box, `Score against sparsity on ${r.at[3]}`, [0, ...every.map((p) => 100 * p[7])], ys, ["parameters removed, %", r.kind === "percent" ? "score, %" : r.kind === "perplexity" ? "perplexity (log)" : "score"], false, log, room);
  const left = c.pad.l, edge = c.w - c.pad.r;
  if (r.chance !== null) c.pic.append(svg("line", { x1: left, x2: edge, y1: c.y(v(r.chance)), y2: c.y(v(r.chance)), stroke: "var(--plot-muted)", "stroke-dasharray": "2 4" }), svg("text", { x: left + 4, y: c.y(v(r.chance)) - 4, class: "tick" }, "chance"));
  if (dense && dense[3] !== null) {
    if (dense[4] !== null && (!log || dense[4] > 0)) c.pic.append(svg("rect", { x: left, width: edge - left, y: c.y(v(dense[5])), height: Math.max(0.5, c.y(v(dense[4])) - c.y(v(dense[5]))), fill: "var(--plot-muted)", opacity: 0.14 }));
    c.pic.append(svg("line", { x1: left, x2: edge, y1: c.y(v(dense[3])), y2: c.y(v(dense[3])), stroke: "var(--plot-ink)", "stroke-width": 0.8 }));
  }
  const labels = [];
  for (const [line, points] of drawn) {
    points.sort((a, b) => a[7] - b[7]);
    const banded = points.filter((p) => p[4] !== null && (!log || p[4] > 0));
    const ends = (i) => banded.map((p) => `${c.x(100 * p[7])},${c.y(v(p[i]))}`);
    if (banded.length > 1) c.pic.append(svg("polygon", { points: [...ends(5), ...ends(4).reverse()].join(" "), fill: colour(line), opacity: 0.13 }));
    for (const p of banded) c.pic.append(svg("line", { x1: c.x(100 * p[7]), x2: c.x(100 * p[7]), y1: c.y(v(p[4])), y2: c.y(v(p[5])), stroke: colour(line), opacity: 0.6 }));
    c.pic.append(svg("polyline", { points: points.map((p) => `${c.x(100 * p[7])},${c.y(v(p[3]))}`).join(" "), fill: "none", stroke: colour(line), "stroke-width": 1.6, "stroke-dasharray": line >= 8 ? "5 3" : "none" }));
    const last = points[points.length - 1];
    labels.push({ y: c.y(v(last[3])), x: c.x(100 * last[7]), line, text: last[2] });
  }
  if (dense && dense[3] !== null) c.pic.append(mark(c.x(0), c.y(v(dense[3])), -1, `dense: ${dense[6]}`));
  for (const [line, points] of drawn) for (const p of points) c.pic.append(mark(c.x(100 * p[7]), c.y(v(p[3])), line, `${p[2]}: ${p[6]} at ${(100 * p[7]).toFixed(1)} % removed`));
  spread(labels, c.pad.t + 8, c.h - c.pad.b);
  for (const l of labels) c.pic.append(svg("line", { x1: l.x + 5, x2: edge + 6, y1: l.y, y2: l.at - 4, stroke: colour(l.line), "stroke-width": 0.6, opacity: 0.7 }), svg("text", { x: edge + 8, y: l.at, class: "direct", fill: colour(l.line) }, cut(l.text, c.pad.r - 10)));
  box.replaceChildren(c.pic);
  const more = lines.size - drawn.length;
  figure.querySelector("figcaption p").textContent = `Bars and bands: 95 % intervals. Star and grey band: the dense model.${more > 0 ? ` ${more} more methods are in the table.` : ""}`;
};

// --- any score against any cost
let axis = 0, suite = null;
const drawTradeoff = () => {
  const section = $("tradeoff"), r = races[current];
  const siblings = races.filter((o) => [0, 1, 2, 3].every((i) => o.key[i] === r.key[i]));
  const y = siblings.find((o) => o.at[3] === suite) || r;
  const cost = (p, i) => (DATA.costs[p[0]] || [])[i];
  const usable = (i) => y.points.filter((p) => p[3] !== null && cost(p, i) > 0);
  const axes = DATA.axes.map((label, i) => [label, i]).filter(([, i]) => usable(i).length > 1 && new Set(usable(i).map((p) => cost(p, i))).size > 1);
  section.hidden = !axes.length;
  if (section.hidden) return;
  if (!axes.some(([, i]) => i === axis)) axis = axes[0][1];
  const pick = (label, options, value, change) => {
    const node = make("select", { onchange: () => { change(node.value); drawTradeoff(); $("tradeoff-controls").querySelectorAll("select")[label === "Score" ? 0 : 1].focus(); } }, options.map(([t, v]) => make("option", { value: String(v), text: t })));
    node.value = String(value);
    return make("label", {}, label, node);
  };
  $("tradeoff-controls").replaceChildren(pick("Score", siblings.map((o) => [o.at[3], o.at[3]]), y.at[3], (v) => { suite = v; }), pick("Against", axes, axis, (v) => { axis = Number(v); }));
  const points = usable(axis), v = (n) => shownValue(y, n), log = y.kind === "perplexity", box = $("scatter").querySelector(".canvas");
  const xs = points.map((p) => cost(p, axis)), ys = points.flatMap((p) => [p[3], p[4], p[5]]).filter((n) => n !== null && (!log || n > 0)).map(v);
  const logX = Math.max(...xs) / Math.min(...xs) > 20;
  const room = Math.min(190, 0.3 * Math.max(300, box.clientWidth));
  const c = canvas(box, `${y.at[3]} against ${DATA.axes[axis]}`, xs, ys, [DATA.axes[axis] + (logX ? " (log)" : ""), log ? "perplexity (log)" : y.kind === "percent" ? "score, %" : "score"], logX, log, room);
  // On the front: nothing cheaper has an interval that reaches as far as this one's. Overlapping intervals add no point.
  const front = [], sign = y.higher ? 1 : -1;
  const near = (p) => sign * (p[4] === null ? p[3] : y.higher ? p[4] : p[5]), far = (p) => sign * (p[4] === null ? p[3] : y.higher ? p[5] : p[4]);
  for (const p of [...points].sort((a, b) => cost(a, axis) - cost(b, axis) || sign * (b[3] - a[3]))) if (!front.length || near(p) > far(front[front.length - 1])) front.push(p);
  if (front.length > 1) c.pic.append(svg("polyline", { points: front.map((p) => `${c.x(cost(p, axis))},${c.y(v(p[3]))}`).join(" "), fill: "none", stroke: "var(--plot-muted)", "stroke-dasharray": "5 4" }));
  const labels = [];
  for (const p of points) {
    const at = [c.x(cost(p, axis)), c.y(v(p[3]))];
    if (p[4] !== null && (!log || p[4] > 0)) c.pic.append(svg("line", { x1: at[0], x2: at[0], y1: c.y(v(p[4])), y2: c.y(v(p[5])), stroke: colour(p[1]), opacity: 0.6 }));
    labels.push({ x: at[0], y: at[1], line: p[1], text: p[2] });
  }
  for (const p of points) c.pic.append(mark(c.x(cost(p, axis)), c.y(v(p[3])), p[1], `${p[2]}: ${p[6]} at ${compact(cost(p, axis))} ${DATA.axes[axis]}`, 5.5));
  const named = labels.slice(0, 2 * MOST_LINES);
  spread(named, c.pad.t + 8, c.h - c.pad.b);
  const edge = c.w - c.pad.r;
  for (const l of named) c.pic.append(svg("line", { x1: l.x + 6, x2: edge + 6, y1: l.y, y2: l.at - 4, stroke: colour(l.line), "stroke-width": 0.5, opacity: 0.5 }), svg("text", { x: edge + 8, y: l.at, class: "direct", fill: colour(l.line) }, cut(l.text, c.pad.r - 10)));
  box.replaceChildren(c.pic);
  $("scatter").querySelector("figcaption p").textContent = "Bars: 95 % intervals. Dashed: the front, drawn only where the intervals support it: each point on it is better than every cheaper one beyond both intervals. Star: the dense model.";
};

if (races.length) {
  const wanted = fromHash();
  show(wanted >= 0 ? wanted : DATA.first);
  addEventListener("hashchange", () => { const i = fromHash(); if (i >= 0) show(i); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawLines(); drawTradeoff(); } });
}
// The address keeps the race: sections are scrolled to, not written into it.
document.querySelectorAll('.bar nav a[href^="#"]').forEach((a) => a.addEventListener("click", (e) => {
  const target = $(a.getAttribute("href").slice(1));
  if (!target) return;
  e.preventDefault();
  if (target.matches("details")) target.open = true;
  target.scrollIntoView();
  target.setAttribute("tabindex", "-1");
  target.focus({ preventScroll: true });
}));

const grids = [...document.querySelectorAll(".grid")].map((box) => new Grid(box));
document.querySelectorAll("[data-cell]").forEach((b) => b.addEventListener("click", () => openDetail("cell", Number(b.dataset.cell))));
addEventListener("beforeprint", () => { document.querySelectorAll("main details").forEach((d) => { d.open = true; }); grids.forEach((g) => { if (g.set.rows.length <= 200) g.draw(true); }); });
addEventListener("afterprint", () => grids.forEach((g) => g.draw()));
document.body.dataset.ready = "true";
