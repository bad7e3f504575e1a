"use strict";
// Learning curves with uPlot: smoothed training loss, held-out points, pace.
hagane.curves = (curves) => {
  const charts = [];
  const smooth = document.getElementById("smooth"), log = document.getElementById("log");
  // exponential mean, started without bias (as in Adam)
  const smoothed = (values, keep) => {
    let mean = 0, mass = 0;
    return values.map((v) => {
      if (v === null) return null;
      mean = keep * mean + (1 - keep) * v;
      mass = keep * mass + (1 - keep);
      return mean / mass;
    });
  };
  const axis = () => {
    const theme = hagane.theme();
    const one = { stroke: theme.soft, grid: { stroke: theme.line, width: 1 }, ticks: { stroke: theme.line, width: 1 }, font: `12px ${theme.sans}` };
    return one;
  };
  // the next of 1, 2, 5, 10 ... below or above: log axes that end on round numbers
  const step125 = (v, way) => {
    const power = 10 ** Math.floor(Math.log10(v));
    const steps = [1, 2, 5, 10].map((k) => k * power);
    return way > 0 ? steps.find((s) => s >= v * 0.999) : steps.filter((s) => s <= v * 1.001).pop();
  };
  const positive = (values, isLog) => values.map((v) => (v === null || (isLog && v <= 0) ? null : v));
  const size = (box, tall) => ({ width: Math.max(200, box.clientWidth), height: tall });
  const show = (_, v) => (v === null || v === undefined ? "–" : hagane.show(v));

  const build = () => {
    charts.splice(0).forEach((c) => c.destroy());
    const theme = hagane.theme();
    for (const box of document.querySelectorAll(".chart")) {
      if (box.dataset.chart === "loss") loss(box, theme);
      else if (curves.pace.some((v) => v !== null)) line(box, theme);
      else box.textContent = "not recorded";
    }
  };
  const loss = (box, theme) => {
    const isLog = log.checked, keep = +smooth.value;
    const names = Object.keys(curves.losses).filter((n) => n || Object.keys(curves.losses).length === 1);
    const data = [curves.steps], series = [{ label: "step" }];
    names.forEach((name, place) => {
      const colour = hagane.colour(name, place), raw = positive(curves.losses[name], isLog);
      if (keep) { data.push(raw); series.push({ label: name || "loss", stroke: colour + "33", width: 1, points: { show: false }, spanGaps: true, legend: false }); }
      data.push(positive(keep ? smoothed(curves.losses[name], keep) : raw, isLog));
      series.push({ label: name || "loss", stroke: colour, width: 2, points: { show: false }, spanGaps: true, value: show });
    });
    Object.keys(curves.held_out).forEach((name, place) => {
      const colour = hagane.colour(name, place);
      data.push(positive(curves.held_out[name], isLog));
      series.push({ label: `${name} held out`, stroke: colour, width: 1.5, dash: [6, 4], spanGaps: true, points: { show: true, size: 7, fill: theme.card, width: 2 }, value: show });
    });
    const options = {
      ...size(box, box.clientWidth < 500 ? 280 : 360), series,
      scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range: (_, low, high) => (low === null ? [0.1, 1] : isLog ? [step125(low, -1), step125(high, 1)] : [0, high * 1.05]) } },
      axes: [{ ...axis(), label: "optimiser step", labelSize: 22, labelFont: `12px ${theme.sans}` }, { ...axis(), size: 58, values: (_, ticks) => ticks.map((t) => (t === null ? "" : +t.toPrecision(3))) }],
      cursor: { points: { size: 6 } },
    };
    const chart = new uPlot(options, data, box);
    // the faint raw lines need no legend of their own
    chart.root.querySelectorAll(".u-legend .u-series").forEach((row, k) => { if (series[k].legend === false) row.style.display = "none"; });
    charts.push(chart);
  };
  const line = (box, theme) => {
    const options = {
      ...size(box, 220), legend: { show: false },
      series: [{ label: "step" }, { label: "samples/s", stroke: theme.classical, width: 2, points: { show: false }, value: show, fill: theme.classical + "1c" }],
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } },
      axes: [axis(), { ...axis(), size: 58 }],
    };
    charts.push(new uPlot(options, [curves.steps, curves.pace], box));
  };

  if (!curves.steps.length) return;
  build();
  smooth.onchange = log.onchange = build;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(build));
  let wide = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== wide) { wide = window.innerWidth; build(); } });
};
