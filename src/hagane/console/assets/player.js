"use strict";
// One player a replay: play, seek, choose the case and who drives.
hagane.SPEEDS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60];

hagane.player = (root, replay) => {
  const $ = (s) => root.querySelector(s);
  const canvas = $("canvas"), seek = $(".seek"), play = $(".play"), time = $(".time"), caption = $(".caption");
  const cases = $(".case"), speeds = $(".speed"), who = $(".who");
  const episodes = replay.episodes.filter((e) => e.frames.length);
  const state = { at: 0, playing: false, speed: 1, episode: null, view: { turn: 0 }, seen: true };
  if (!episodes.length) { caption.textContent = "no episode was recorded"; canvas.hidden = true; return null; }
  for (const e of episodes) e.fixed = e.static === null ? {} : replay.statics[e.static];

  // a case is a task with a seed: the same start for everyone
  const seeds = (name) => new Set(episodes.filter((e) => e.case === name).map((e) => e.seed)).size;
  const key = (e) => (seeds(e.case) > 1 ? `${e.case}, seed ${e.seed}` : e.case);
  const keys = [...new Set(episodes.map(key))];
  for (const k of keys) cases.add(new Option(k, k));
  const longest = Math.max(...episodes.map((e) => e.frames.length)) / replay.rate_hz;
  state.speed = hagane.SPEEDS.reduce((best, s) => Math.abs(Math.log(longest / s / 14)) < Math.abs(Math.log(longest / best / 14)) ? s : best, 1);
  for (const s of hagane.SPEEDS) speeds.add(new Option(`${s}×`, s, false, s === state.speed));

  const isOurs = (e) => e.who.split(":")[0] === "ours";
  const choose = (episode, keep) => {
    const same = keep && state.episode;
    state.episode = episode;
    state.view.ours = isOurs(episode);
    seek.max = episode.frames.length - 1;
    if (!same) state.at = 0;
    state.at = Math.min(state.at, episode.frames.length - 1);
    [...who.children].forEach((b) => {
      const chosen = b.dataset.who === episode.who;
      b.setAttribute("aria-checked", chosen);
      b.tabIndex = chosen ? 0 : -1;
    });
    const parts = [];
    if (episode.score !== null) parts.push(`score ${hagane.show(episode.score)}`);
    if (episode.seed !== null) parts.push(`seed ${episode.seed}`);
    parts.push(`${((episode.frames.length - 1) / replay.rate_hz).toFixed(longest > 100 ? 0 : 1)} s`);
    caption.textContent = `${episode.who}: ${parts.join(", ")}`;
    draw();
  };
  const listWho = (wanted) => {
    const there = episodes.filter((e) => key(e) === cases.value);
    there.sort((a, b) => isOurs(b) - isOurs(a));
    who.replaceChildren(...there.map((e) => {
      const b = document.createElement("button");
      b.type = "button";
      b.textContent = e.who;
      b.dataset.who = e.who;
      b.className = isOurs(e) ? "ours" : "";
      b.setAttribute("role", "radio");
      b.onclick = () => choose(e, true);
      return b;
    }));
    choose(there.find((e) => e.who === wanted) || there[0], false);
  };
  who.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...who.children], k = all.findIndex((b) => b.getAttribute("aria-checked") === "true");
    const to = all[(k + step + all.length) % all.length];
    to.click();
    to.focus();
  };

  const draw = () => {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const w = canvas.clientWidth, h = canvas.clientHeight;
    if (!w || !h) return;
    if (canvas.width !== Math.round(w * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, w, h);
    const painter = hagane.painters[replay.kind] || hagane.painters.table;
    c.save();
    try {
      painter(c, w, h, state.episode, state.at, state.view);
    } catch (error) {
      // a drawing of an older shape: show its numbers rather than nothing
      c.restore();
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
      c.clearRect(0, 0, w, h);
      c.save();
      hagane.painters.table(c, w, h, state.episode, state.at);
    }
    c.restore();
    seek.value = Math.round(state.at);
    time.textContent = `${(state.at / replay.rate_hz).toFixed(longest > 100 ? 0 : 1)} s`;
  };

  let before = 0, waited = 0, fresh = false;
  const tick = (now) => {
    if (!state.playing) return;
    const end = state.episode.frames.length - 1;
    const passed = Math.min(0.1, (now - before) / 1000);
    before = now;
    if (state.at >= end) {
      // rest on the last frame before the loop begins again
      waited += passed;
      if (waited > 1.2) { waited = 0; state.at = 0; }
    } else {
      state.at = Math.min(end, state.at + passed * replay.rate_hz * state.speed);
    }
    if (state.seen) draw();
    requestAnimationFrame(tick);
  };
  const setPlaying = (on) => {
    if (on === state.playing) return;
    state.playing = on;
    play.textContent = on ? "❚❚" : "▶";
    play.setAttribute("aria-label", on ? "pause" : "play");
    before = performance.now();
    if (on) requestAnimationFrame(tick);
  };
  const go = (at) => {
    setPlaying(false);
    fresh = false;
    state.at = Math.min(Math.max(0, at), state.episode.frames.length - 1);
    draw();
  };

  play.onclick = () => setPlaying(!state.playing);
  seek.oninput = () => go(+seek.value);
  speeds.onchange = () => { state.speed = +speeds.value; };
  cases.onchange = () => listWho(state.episode.who);
  canvas.onkeydown = (event) => {
    const act = { " ": () => setPlaying(!state.playing), ArrowRight: () => go(state.at + 1), ArrowLeft: () => go(state.at - 1), Home: () => go(0), End: () => go(1e9) }[event.key];
    if (act) { event.preventDefault(); act(); }
  };
  if (replay.kind === "arm") {
    canvas.style.cursor = "grab";
    canvas.onpointermove = (event) => { if (event.buttons) { state.view.turn += event.movementX * 0.008; draw(); } };
  }
  new ResizeObserver(draw).observe(canvas);
  // it starts by itself when it first comes into view, unless the reader asked for less motion
  new IntersectionObserver((seen) => {
    state.seen = seen[0].isIntersecting;
    if (fresh && state.seen) {
      fresh = false;
      state.at = 0;
      setPlaying(true);
      root.dispatchEvent(new Event("playing", { bubbles: true }));
    }
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(draw));
  window.addEventListener("beforeprint", draw);
  listWho("ours");
  // until it plays (and on paper) it shows the middle: the start of a drive has nothing to see
  go(Math.floor((state.episode.frames.length - 1) * 0.45));
  fresh = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  return { setPlaying, isPlaying: () => state.playing };
};
