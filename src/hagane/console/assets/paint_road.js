"use strict";
// The road from above, metres, turned so that the car drives up the drawing.
// ego [x, y, heading, length, width]; agents the same, one a row; objects: rows that are no vehicles; speed, limit (m/s);
// terms of the score; static.lines [[kind, [[x, y], ...]], ...] with kinds edge, dash and route
hagane.painters.road = (c, w, h, episode, at, view) => {
  const theme = hagane.theme();
  const i = Math.min(Math.floor(at), episode.frames.length - 1);
  const now = episode.frames[i], next = episode.frames[i + 1];
  const u = next ? at - i : 0;
  const pose = (a, b) => {
    if (!b || Math.hypot(a[0] - b[0], a[1] - b[1]) > 6) return a;
    const turn = Math.atan2(Math.sin(b[2] - a[2]), Math.cos(b[2] - a[2]));
    return [a[0] + u * (b[0] - a[0]), a[1] + u * (b[1] - a[1]), a[2] + u * turn, a[3], a[4]];
  };
  const ego = pose(now.ego, next && next.ego);
  const paired = next && (next.agents || []).length === (now.agents || []).length;
  const agents = (now.agents || []).map((a, k) => pose(a, paired ? next.agents[k] : null));
  const lines = ((episode.fixed || {}).lines || []).filter((l) => Array.isArray(l[1]) && l[1].length > 1);

  // the camera turns slowly with the road: the mean heading of the last second, not every twitch
  const recent = episode.frames.slice(Math.max(0, i - 8), i + 1).map((f) => f.ego[2]);
  recent.push(ego[2]);
  const facing = Math.atan2(recent.reduce((s, a) => s + Math.sin(a), 0), recent.reduce((s, a) => s + Math.cos(a), 0));
  const scale = Math.min(h / 58, w / 34);
  const cosine = Math.cos(facing), sine = Math.sin(facing);
  const place = (x, y) => {
    const dx = x - ego[0], dy = y - ego[1];
    return [w * 0.44 - scale * (cosine * dy - sine * dx), h * 0.7 - scale * (cosine * dx + sine * dy)];
  };
  const path = (points) => {
    c.beginPath();
    points.forEach(([x, y], k) => { const p = place(x, y); if (k) c.lineTo(p[0], p[1]); else c.moveTo(p[0], p[1]); });
  };
  const draw = (points, colour, wide, dash) => {
    path(points);
    c.strokeStyle = colour;
    c.lineWidth = wide;
    c.setLineDash(dash || []);
    c.stroke();
    c.setLineDash([]);
  };

  c.lineJoin = "round";
  const edges = lines.filter((l) => l[0] === "edge").map((l) => l[1]);
  for (let k = 0; k + 1 < edges.length; k++) {
    path([...edges[k], ...edges[k + 1].slice().reverse()]);
    c.fillStyle = theme.road;
    c.fill();
  }
  for (const [kind, points] of lines) {
    if (kind === "edge") draw(points, theme.edge, 2);
    else if (kind === "dash") draw(points, theme.lane, 1.8, [3 * scale, 4.5 * scale]);
    else if (kind === "route") { c.globalAlpha = 0.35; draw(points, theme.classical, 2, [2, 6]); c.globalAlpha = 1; }
    else draw(points, theme.edge, 1);
  }

  // where it has been
  const trail = episode.frames.slice(Math.max(0, i - 45), i + 1).map((f) => f.ego);
  trail.push(ego);
  const own = view.ours ? theme.ours : theme.classical;
  trail.forEach((p, k) => {
    if (!k) return;
    c.globalAlpha = 0.6 * k / trail.length;
    draw([trail[k - 1], p], own, 3.2);
  });
  c.globalAlpha = 1;

  const objects = new Set(now.objects || []);
  const car = (p, colour, isObject) => {
    const [x, y] = place(p[0], p[1]);
    const long = Math.max(p[3] || 4.6, 0.6) * scale, wide = Math.max(p[4] || 1.9, 0.6) * scale;
    c.save();
    c.translate(x, y);
    c.rotate(-(p[2] - facing));
    c.fillStyle = colour;
    c.beginPath();
    if (isObject) c.rect(-wide / 2, -long / 2, wide, long); else c.roundRect(-wide / 2, -long / 2, wide, long, Math.min(wide, long) * 0.28);
    c.fill();
    if (!isObject) {
      // the windscreen shows which way it faces
      c.fillStyle = theme.dark ? "#0c0f11aa" : "#ffffffaa";
      c.beginPath();
      c.roundRect(-wide * 0.36, -long * 0.24, wide * 0.72, long * 0.17, wide * 0.1);
      c.fill();
    }
    c.restore();
  };
  agents.forEach((a, k) => car(a, objects.has(k) ? theme.warn : theme.link, objects.has(k)));
  car(ego, own, false);

  // instruments, on plates so that they can be read over the road
  const plate = (x, y, wide, tall) => {
    c.globalAlpha = 0.82;
    c.fillStyle = theme.sunk;
    c.beginPath();
    c.roundRect(x, y, wide, tall, 6);
    c.fill();
    c.globalAlpha = 1;
  };
  const speed = hagane.isNumber(now.speed) ? now.speed : null;
  if (speed !== null) {
    plate(6, 6, now.limit ? 118 : 70, 62);
    const kmh = 3.6 * speed, limit = hagane.isNumber(now.limit) ? 3.6 * now.limit : null;
    hagane.text(c, kmh.toFixed(0), 14, 40, theme.ink, 32, "left", 650);
    hagane.text(c, "km/h" + (limit === null ? "" : `, limit ${limit.toFixed(0)}`), 15, 58, theme.soft, 12);
  }
  const names = { nc: "no collision", dac: "on the road", ep: "progress", ttc: "time to collision", comfort: "comfort" };
  const terms = Object.entries(now.terms || {}).filter(([k]) => k in names);
  if (terms.length) plate(w - 166, 6, 160, 10 + 17 * terms.length);
  terms.forEach(([k, v], row) => {
    const y = 20 + row * 17;
    hagane.text(c, names[k], w - 62, y, v < 0.5 ? theme.bad : theme.soft, 12, "right");
    c.fillStyle = theme.line;
    c.fillRect(w - 54, y - 7, 40, 5);
    c.fillStyle = v < 0.5 ? theme.bad : theme.ok;
    c.fillRect(w - 54, y - 7, 40 * Math.min(1, Math.max(0, v)), 5);
  });
  if (hagane.isNumber((now.terms || {}).progress_m)) hagane.text(c, `${now.terms.progress_m.toFixed(0)} m`, 15, h - 14, theme.soft, 12);
  // a scale of ten metres
  c.fillStyle = theme.faint;
  c.fillRect(w - 14 - 10 * scale, h - 14, 10 * scale, 2);
  hagane.text(c, "10 m", w - 14, h - 20, theme.faint, 11, "right");
};
