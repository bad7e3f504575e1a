"use strict";
// What all painters share, and the painter for kinds that have none of their own: their numbers.
const hagane = { painters: {}, cut: (text, n) => text.length > n ? text.slice(0, n - 1) + "…" : text };

hagane.theme = (() => {
  let kept = null;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { kept = null; });
  return () => {
    if (kept) return kept;
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue("--" + name).trim();
    kept = {
      paper: of("paper"), card: of("card"), ink: of("ink"), soft: of("soft"), faint: of("faint"), line: of("line"), sunk: of("sunk"),
      ours: of("ours"), classical: of("classical"), ok: of("ok"), bad: of("bad"), warn: of("warn"),
      table: of("table"), link: of("link"), road: of("road"), edge: of("road-edge"), lane: of("lane"),
      arm: of("c-arm"), mill: of("c-mill"), green: of("c-road"), sans: of("sans"),
      dark: matchMedia("(prefers-color-scheme: dark)").matches,
    };
    kept.series = ["c-arm", "c-road", "c-mill", "c-4", "c-5", "c-6"].map(of);
    return kept;
  };
})();

// a colour for a machine: its own when the page knows it, else by its place
hagane.colour = (name, place) => {
  const own = { arm: 0, road: 1, mill: 2 }[name];
  return hagane.theme().series[own !== undefined ? own : (3 + place) % 6];
};

hagane.isNumber = (v) => typeof v === "number" && isFinite(v);

hagane.text = (c, text, x, y, colour, size = 13, align = "left", weight = 400) => {
  c.font = `${weight} ${size}px ${hagane.theme().sans}`;
  c.fillStyle = colour;
  c.textAlign = align;
  c.fillText(text, x, y);
};

// a number with a true minus and enough digits to see it move
hagane.show = (v) => {
  if (!hagane.isNumber(v)) return "–";
  const size = Math.abs(v);
  return v.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3).replace("-", "−");
};

hagane.painters.table = (c, w, h, episode, at) => {
  const theme = hagane.theme();
  const frame = episode.frames[Math.round(at)] || {};
  const rows = [];
  const walk = (name, value) => {
    if (rows.length > 60) return;
    if (Array.isArray(value) && value.every((v) => typeof v === "number" || v === null)) rows.push([name, value.slice(0, 8).map(hagane.show).join("  ") + (value.length > 8 ? " …" : "")]);
    else if (Array.isArray(value)) value.forEach((v, i) => walk(`${name} ${i}`, v));
    else if (value !== null && typeof value === "object") Object.entries(value).forEach(([k, v]) => walk(name ? `${name} ${k}` : k, v));
    else rows.push([name, typeof value === "number" ? hagane.show(value) : String(value)]);
  };
  walk("", frame);
  const step = 20, room = Math.floor((h - 30) / step);
  rows.slice(0, room).forEach(([name, value], i) => {
    hagane.text(c, hagane.cut(name, 24), 16, 28 + i * step, theme.soft);
    hagane.text(c, hagane.cut(value, 44), w - 16, 28 + i * step, theme.ink, 13, "right");
  });
  if (rows.length > room) hagane.text(c, `and ${rows.length - room} more`, 16, h - 8, theme.faint, 12);
};
