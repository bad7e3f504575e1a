"use strict";
// The galvanising line as trends, as in a control room: coating against its minimum above, what the controller does below.
// minimum, coating (true, at the knife), measured (late), pressure, distance, speed, return; static.delay (s) and
// static.over_limit (times the minimum at which a second's return falls to 0)
hagane.painters.mill = (c, w, h, episode, at) => {
  const theme = hagane.theme();
  const frames = episode.frames, last = Math.min(Math.floor(at), frames.length - 1);
  const view = hagane.millView(episode);
  // a moving window of four minutes: long enough to see a late gauge answer, short enough to see it well
  const long = Math.min(frames.length, 240);
  const from = Math.max(0, Math.min(last - Math.round(long * 0.92), frames.length - long));
  const left = 46, right = w - 14;
  const x = (k) => left + (right - left) * (k - from) / Math.max(1, long - 1);
  const panels = view.panels;
  const gap = 27, top0 = 64;
  const room = h - top0 - 12 - gap * (panels.length - 1);
  const weight = panels.reduce((s, p) => s + p.weight, 0);
  const gained = frames[last].return;
  if (hagane.isNumber(gained)) {
    const figure = gained.toFixed(0).replace("-", "−");
    hagane.text(c, figure, 14, 27, theme.ink, 20, "left", 650);
    const wide = c.measureText(figure).width;
    hagane.text(c, "return so far", 22 + wide, 27, theme.soft, 12);
  }
  const delay = (episode.fixed || {}).delay;
  if (hagane.isNumber(delay)) hagane.text(c, `gauge ${delay} s late`, right, 27, theme.soft, 12, "right");
  let top = top0;
  for (const panel of panels) {
    const tall = room * panel.weight / weight;
    drawPanel(panel, top, tall);
    top += tall + gap;
  }

  function drawPanel(panel, top, tall) {
    const [low, high] = panel.range;
    const y = (v) => top + tall * (1 - (v - low) / (high - low));
    c.save();
    c.strokeStyle = theme.line;
    c.lineWidth = 1;
    for (const tick of hagane.ticks(low, high, tall < 70 ? 1.5 : 4)) {
      if (y(tick) < top + 5 || y(tick) > top + tall - 3) continue;
      c.beginPath();
      c.moveTo(left, y(tick));
      c.lineTo(right, y(tick));
      c.stroke();
      hagane.text(c, String(+tick.toPrecision(6)).replace("-", "−"), left - 6, y(tick) + 4, theme.faint, 11, "right");
    }
    c.beginPath();
    c.rect(left, top - 4, right - left + 8, tall + 8);
    c.clip();
    if (panel.band) {
      c.beginPath();
      for (let k = from; k <= last; k++) c.lineTo(x(k), y(panel.band[1][k]));
      for (let k = last; k >= from; k--) c.lineTo(x(k), y(panel.band[0][k]));
      c.closePath();
      c.fillStyle = theme.ok;
      c.globalAlpha = 0.16;
      c.fill();
      c.globalAlpha = 1;
    }
    for (const s of panel.series) {
      c.beginPath();
      let pen = false;
      for (let k = from; k <= last; k++) {
        const v = s.values[k];
        if (!hagane.isNumber(v)) { pen = false; continue; }
        if (!pen) c.moveTo(x(k), y(v));
        else if (s.step) { c.lineTo(x(k), y(s.values[k - 1])); c.lineTo(x(k), y(v)); } else c.lineTo(x(k), y(v));
        pen = true;
      }
      c.strokeStyle = s.colour(theme);
      c.lineWidth = s.wide || 1.6;
      c.setLineDash(s.dash || []);
      c.stroke();
      c.setLineDash([]);
      const v = s.values[last];
      if (hagane.isNumber(v)) { c.beginPath(); c.arc(x(last), y(v), 3, 0, 7); c.fillStyle = s.colour(theme); c.fill(); }
    }
    c.restore();
    let at = 14;
    for (const s of panel.series) {
      const v = s.values[last];
      const label = `${s.name} ${panel.series.length > 1 && hagane.isNumber(v) ? v.toFixed(0) : hagane.show(v)}`;
      c.fillStyle = s.colour(theme);
      c.fillRect(at, top - 16, 12, 3);
      hagane.text(c, label, at + 17, top - 11, theme.soft, 12);
      at += 32 + c.measureText(label).width;
    }
    if (panel.unit && at < right - 34) hagane.text(c, panel.unit, right, top - 11, theme.faint, 11, "right");
  }
};

// Round numbers inside a range.
hagane.ticks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough) || rough;
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) out.push(v);
  return out;
};

// Which numbers of a frame go where; worked out once an episode.
hagane.millView = (episode) => {
  if (episode.millView) return episode.millView;
  const of = (...names) => {
    const name = names.find((n) => episode.frames.some((f) => hagane.isNumber(f[n])));
    return name && episode.frames.map((f) => f[name]);
  };
  const range = (lists) => {
    const all = lists.flat().filter(hagane.isNumber).sort((a, b) => a - b);
    if (!all.length) return [0, 1];
    // a start far off the band must not flatten the rest
    const low = all[Math.floor(all.length * 0.004)], high = all[Math.ceil((all.length - 1) * 0.996)];
    const air = 0.08 * (high - low) || 1;
    return [low - air, high + air];
  };
  const minimum = of("minimum", "target"), coating = of("coating", "true"), measured = of("measured");
  const over = (episode.fixed || {}).over_limit;
  const high = minimum && hagane.isNumber(over) ? minimum.map((v) => v * over) : of("high");
  const low = of("low") || minimum;
  const above = [
    measured && { name: "measured", values: measured, colour: (t) => t.arm, wide: 1 },
    coating && { name: "true", values: coating, colour: (t) => t.ours, wide: 1.6 },
    minimum && { name: "minimum", values: minimum, colour: (t) => t.ink, step: true, wide: 1.4 },
  ].filter(Boolean);
  const panels = [];
  if (above.length) panels.push({ weight: 3.8, unit: "g/m²", series: above, band: low && high ? [low, high] : null, range: range([...above.map((s) => s.values), high || []]) });
  for (const [name, unit, colour, step] of [["pressure", "kPa", (t) => t.mill, true], ["distance", "mm", (t) => t.classical, true], ["speed", "m/s", (t) => t.green, false]]) {
    const values = of(name);
    if (values) panels.push({ weight: 1, unit, series: [{ name, values, colour, step }], range: range([values]) });
  }
  episode.millView = { panels };
  return episode.millView;
};
