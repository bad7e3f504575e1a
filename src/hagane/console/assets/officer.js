"use strict";
// The language: what the address says (#ja, #en), else the reader's own.
(() => {
  const pick = { "#ja": "ja", "#en": "en" }[location.hash] || (navigator.language || "ja").slice(0, 2);
  const chosen = document.getElementById(pick === "en" ? "lang-en" : "lang-ja");
  const radios = document.querySelectorAll("input[name=lang]");
  const follow = () => { document.documentElement.lang = document.querySelector("input[name=lang]:checked").value; };
  chosen.checked = true;
  for (const radio of radios) radio.onchange = follow;
  follow();
})();
