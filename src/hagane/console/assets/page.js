"use strict";
// Wires the page together: players, curves.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const players = [];
  for (const root of document.querySelectorAll(".player")) {
    const player = hagane.player(root, data.replays[root.dataset.replay]);
    if (player) players.push(player);
  }
  const all = document.getElementById("play-all");
  if (all) {
    const show = () => {
      const on = players.some((p) => p.isPlaying());
      all.textContent = on ? "pause all" : "play all";
      all.setAttribute("aria-pressed", on);
    };
    all.onclick = () => {
      const on = !players.some((p) => p.isPlaying());
      players.forEach((p) => p.setPlaying(on));
      show();
    };
    document.querySelector(".players").addEventListener("click", show);
    document.querySelector(".players").addEventListener("keyup", show);
    document.querySelector(".players").addEventListener("playing", show);
  }
  hagane.curves(data.curves);
})();
