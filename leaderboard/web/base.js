// What every part of the page uses: the data, making nodes, the theme, tooltips.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const live = $("live");
const make = (tag, props = {}, ...kids) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const kid of kids.flat()) if (kid !== null && kid !== undefined) node.append(kid);
  return node;
};

const NS = "http://www.w3.org/2000/svg";
const svg = (tag, props, ...kids) => { const n = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(props)) n.setAttribute(k, v); n.append(...kids); return n; };
const compare = (a, b, direction) => {
  const none = (v) => v === null || v === undefined;
  if (none(a) || none(b)) return none(a) - none(b);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * (String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0);
};

// --- theme: follows the system until the reader chooses
const root = document.documentElement;
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("prunebench-theme"); } catch { chosen = null; }
const paint = () => {
  const dark = chosen ? chosen === "dark" : systemDark.matches;
  root.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
  $("theme").setAttribute("aria-label", dark ? "Switch to light theme" : "Switch to dark theme");
};
systemDark.addEventListener("change", paint);
$("theme").addEventListener("click", () => {
  chosen = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("prunebench-theme", chosen); } catch { /* a page from disk may have no storage */ }
  paint();
});
paint();

// --- tooltips: on hover, on focus, closed by Escape
const tooltip = $("tooltip");
const showTip = (target, x, y) => {
  tooltip.textContent = target.dataset.tip;
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  tooltip.style.left = Math.max(6, Math.min(x + 12, innerWidth - box.width - 6)) + "px";
  tooltip.style.top = (y + 18 + box.height > innerHeight ? Math.max(6, y - box.height - 10) : y + 18) + "px";
};
let focusTip = null;
const hideTip = () => { tooltip.hidden = true; focusTip = null; };
const tipAtFocus = () => { const box = focusTip.getBoundingClientRect(); showTip(focusTip, box.left + box.width / 2, box.bottom - 10); };
const tipOf = (event) => event.target.closest && event.target.closest("[data-tip]");
document.addEventListener("pointermove", (e) => { const t = tipOf(e); if (t) showTip(t, e.clientX, e.clientY); else if (!focusTip) hideTip(); });
document.addEventListener("focusin", (e) => {
  const t = tipOf(e);
  if (!t || !e.target.matches(":focus-visible")) return hideTip();
  focusTip = t;
  tipAtFocus();
});
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (e) => { if (e.key === "Escape") hideTip(); });
addEventListener("scroll", () => { if (focusTip) tipAtFocus(); else hideTip(); }, { passive: true, capture: true });
