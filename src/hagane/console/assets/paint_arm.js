"use strict";
// The arm: links, fingers and boxes in metres (x right, y away from the base, z up), in perspective.
// links [k][3]; fingers [2][3]; boxes [m][12] centre and three half edges; goal [3]; success; static.table, static.boxes
hagane.painters.arm = (c, w, h, episode, at, view) => {
  const theme = hagane.theme();
  const i = Math.min(Math.floor(at), episode.frames.length - 1);
  const frame = hagane.between(episode.frames[i], episode.frames[i + 1], at - i, ["links", "fingers", "boxes"]);
  const fixed = episode.fixed || {};
  const turn = view.turn || 0;
  // a camera at the arm's right, a little behind it: drawers and buttons face the arm
  const look = [0.03, 0.54, 0.13], away = 2.4, yaw = 2.0 + turn, pitch = 0.44;
  const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
  const zoom = Math.min(w * 1.4, h * 1.6);
  const camera = (p) => {
    const x = p[0] - look[0], y = p[1] - look[1], z = p[2] - look[2];
    const right = -(cy * x - sy * y), back = sy * x + cy * y;
    const depth = away - (back * cp + z * sp), up = z * cp - back * sp;
    return [w / 2 + zoom * right / depth, h * 0.5 - zoom * up / depth, depth];
  };
  const path = (points, close) => {
    c.beginPath();
    points.forEach((p, k) => (k ? c.lineTo(p[0], p[1]) : c.moveTo(p[0], p[1])));
    if (close) c.closePath();
  };
  const corners = (b) => [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
    .map(([a, d, e]) => [0, 1, 2].map((k) => b[k] + a * b[3 + k] + d * b[6 + k] + e * b[9 + k]));
  const sides = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 5, 4], [2, 3, 7, 6], [1, 2, 6, 5], [0, 3, 7, 4]];
  const faces = (box, colour) => {
    const all = corners(box);
    const middle = box.slice(0, 3);
    return sides.map((side) => {
      const points = side.map((k) => all[k]);
      const centre = [0, 1, 2].map((k) => points.reduce((s, p) => s + p[k], 0) / 4);
      const out = centre.map((v, k) => v - middle[k]);
      const long = Math.hypot(...out) || 1;
      // light from above and from the left; faces turned away from it are darker
      const light = 0.62 + 0.3 * (out[2] / long) + 0.14 * (-out[0] / long) + 0.1 * (out[1] / long);
      return { points: points.map(camera), depth: camera(centre)[2], colour: shade(colour, light) };
    });
  };
  const shade = (colour, light) => `color-mix(in srgb, ${colour} ${Math.round(100 * Math.min(1, Math.max(0.25, light)))}%, ${theme.dark ? "#0c0f11" : "#2b3238"})`;
  const ground = (p) => camera([p[0], p[1], 0.001]);
  const paint = (face) => {
    path(face.points, true);
    c.fillStyle = face.colour;
    c.fill();
    c.strokeStyle = face.colour;
    c.lineWidth = 0.6;
    c.stroke();
  };

  c.lineJoin = c.lineCap = "round";
  // 1. the table, and shadows on it
  const table = fixed.table || [0, 0.6, -0.027, 0.7, 0, 0, 0, 0.4, 0, 0, 0, 0.027];
  faces(table, theme.table).sort((a, b) => b.depth - a.depth).forEach(paint);
  c.fillStyle = theme.dark ? "#00000066" : "#1b202522";
  const boxes = [...(fixed.boxes || []).map((b) => [b, theme.faint]), ...(frame.boxes || []).map((b) => [b, theme.arm])];
  for (const [box] of boxes) { hull(corners(box).map(ground)); c.fill(); }
  const links = (frame.links || []).filter((p) => p.length === 3);
  c.strokeStyle = theme.dark ? "#00000055" : "#1b20251c";
  c.lineWidth = zoom * 0.022;
  // the table begins in front of the pedestal, so only what hangs over it throws a shadow there
  const over = links.filter((p) => p[1] > 0.2);
  if (over.length > 1) { path(over.map(ground)); c.stroke(); }

  // 2. the goal: a ring on a stalk from the table
  const goal = frame.goal || fixed.goal;
  const reached = frame.success === 1 || frame.success === true;
  if (goal) {
    const [gx, gy, gd] = camera(goal), [fx, fy] = ground(goal);
    const colour = reached ? theme.ok : theme.ours;
    c.strokeStyle = colour;
    c.lineWidth = 1.2;
    c.setLineDash([3, 4]);
    path([[gx, gy], [fx, fy]]);
    c.stroke();
    c.setLineDash([]);
    c.beginPath();
    c.ellipse(fx, fy, zoom * 0.02 / gd, zoom * 0.011 / gd, 0, 0, 7);
    c.stroke();
  }

  // 3. boxes and arm, far ones first
  // the pedestal is no part of the table; without it the arm would seem to float
  if (frame.links && frame.links[0]) faces([...frame.links[0].slice(0, 2), -0.05, 0.075, 0, 0, 0, 0.075, 0, 0, 0, 0.05], theme.link).sort((p, q) => q.depth - p.depth).forEach(paint);
  const solid = boxes.flatMap(([box, colour]) => faces(box, colour));
  const thick = (k) => 0.072 - 0.0042 * k;
  for (let k = 1; k < links.length; k++) {
    const a = links[k - 1], b = links[k];
    const parts = 3;
    for (let q = 0; q < parts; q++) {
      const mix = (u) => [0, 1, 2].map((n) => a[n] + (b[n] - a[n]) * u);
      const p = camera(mix(q / parts)), r = camera(mix((q + 1) / parts));
      solid.push({ depth: (p[2] + r[2]) / 2 - 0.02, line: [p, r], wide: zoom * thick(k) / p[2], joint: q === 0 && k > 1 });
    }
  }
  const hand = links[links.length - 1];
  if (hand) {
    for (const f of frame.fingers || []) {
      const tip = [f[0], f[1], f[2] - 0.05];
      solid.push({ depth: camera(f)[2] - 0.03, line: [camera(hand), camera(f), camera(tip)], wide: zoom * 0.017 / camera(f)[2], finger: true });
    }
  }
  solid.sort((a, b) => b.depth - a.depth);
  for (const s of solid) {
    if (s.points) { paint(s); continue; }
    path(s.line);
    c.strokeStyle = s.finger ? theme.ink : shade(theme.link, 0.62);
    c.lineWidth = s.wide;
    c.stroke();
    if (s.finger) continue;
    path(s.line.map((p) => [p[0] - s.wide * 0.12, p[1] - s.wide * 0.12]));
    c.strokeStyle = theme.link;
    c.lineWidth = s.wide * 0.62;
    c.stroke();
    if (s.joint) {
      c.beginPath();
      c.arc(s.line[0][0], s.line[0][1], s.wide * 0.3, 0, 7);
      c.fillStyle = shade(theme.link, 0.5);
      c.fill();
    }
  }

  // 4. the path of the hand, and the goal's ring in front of everything
  const trail = episode.frames.slice(Math.max(0, i - 70), i + 1).map((f) => f.links && f.links[f.links.length - 1]).filter(Boolean);
  trail.map(camera).forEach((p, k, all) => {
    if (!k) return;
    c.globalAlpha = 0.75 * k / all.length;
    c.strokeStyle = view.ours ? theme.ours : theme.classical;
    c.lineWidth = 2;
    path([all[k - 1], p]);
    c.stroke();
  });
  c.globalAlpha = 1;
  if (goal) {
    const [gx, gy, gd] = camera(goal);
    c.strokeStyle = reached ? theme.ok : theme.ours;
    c.lineWidth = 2.4;
    c.beginPath();
    c.arc(gx, gy, zoom * 0.022 / gd, 0, 7);
    c.stroke();
    if (reached) { c.fillStyle = theme.ok; c.globalAlpha = 0.3; c.fill(); c.globalAlpha = 1; }
  }
  hagane.text(c, reached ? "✓ done" : "○ goal", 14, 26, reached ? theme.ok : theme.ours, 14, "left", 600);
  hagane.text(c, "drag to turn", w - 12, h - 12, theme.faint, 11, "right");

  function hull(points) {
    // Andrew's monotone chain: the outline of a box's shadow
    const sorted = points.map((p) => [p[0], p[1]]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const half = (list) => {
      const out = [];
      for (const p of list) {
        while (out.length > 1) {
          const [a, b] = out.slice(-2);
          if ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0) break;
          out.pop();
        }
        out.push(p);
      }
      return out.slice(0, -1);
    };
    path([...half(sorted), ...half(sorted.reverse())], true);
  }
};

// A frame between two: the named lists of numbers are mixed where their shapes agree, all else is the first's.
hagane.between = (a, b, u, names) => {
  if (!b || u <= 0) return a;
  const mix = (p, q) => {
    if (typeof p === "number" && typeof q === "number") return p + (q - p) * u;
    if (Array.isArray(p) && Array.isArray(q) && p.length === q.length) return p.map((v, k) => mix(v, q[k]));
    return p;
  };
  const out = { ...a };
  for (const name of names) if (name in a && name in b) out[name] = mix(a[name], b[name]);
  return out;
};
