"use strict";
// Curves of a few episodes with uPlot; spans without a valid sample are shaded. Drawn when they are first seen.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const drawn = new Map();
  const axis = (theme) => ({ stroke: theme.soft, grid: { stroke: theme.line, width: 1 }, ticks: { stroke: theme.line, width: 1 }, font: `12px ${theme.sans}` });
  const short = (v) => (v === null || v === undefined ? "–" : String(+v.toPrecision(4)).replace("-", "−"));

  const shade = (gaps, theme) => (u) => {
    const { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.fillStyle = theme.warn + (theme.dark ? "38" : "2b");
    for (const [a, b] of gaps) {
      const from = Math.max(u.valToPos(a, "x", true), left), to = Math.min(u.valToPos(b, "x", true), left + width);
      if (to > left && from < left + width) u.ctx.fillRect(from, top, Math.max(to - from, 2), height);
    }
    u.ctx.restore();
  };

  const draw = (box, chart, seconds, key) => {
    const theme = hagane.theme();
    const series = [{ label: "s", value: (_, v) => short(v) }];
    chart.labels.forEach((label, k) => series.push({
      label, stroke: theme.series[k % theme.series.length], width: 1.25, value: (_, v) => short(v),
      points: { show: chart.t.length < 40, size: 5 }, spanGaps: false,
    }));
    const options = {
      width: Math.max(200, box.clientWidth), height: 190, series,
      scales: { x: { time: false, range: [0, Math.max(seconds, 1e-9)] } },
      axes: [axis(theme), { ...axis(theme), size: 62, values: (_, ticks) => ticks.map(short) }],
      cursor: { sync: { key: `episode-${key}` }, points: { size: 5 } },
      hooks: { drawClear: [shade(chart.gaps, theme)] },
    };
    return new uPlot(options, [chart.t, ...chart.v], box);
  };

  const show = (details) => {
    const key = +details.dataset.shown, shown = data.shown[key];
    (drawn.get(key) || []).forEach((chart) => chart.destroy());
    drawn.set(key, [...details.querySelectorAll(".plot")].map((box) => draw(box, shown.charts[+box.dataset.chart], shown.seconds, key)));
  };
  const all = [...document.querySelectorAll(".run-of")];
  const again = () => { all.forEach((d) => { if (d.open) show(d); else { (drawn.get(+d.dataset.shown) || []).forEach((c) => c.destroy()); drawn.delete(+d.dataset.shown); } }); };
  all.forEach((details) => details.addEventListener("toggle", () => { if (details.open && !drawn.has(+details.dataset.shown)) show(details); }));
  again();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(again));
  let wide = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== wide) { wide = window.innerWidth; again(); } });
})();
