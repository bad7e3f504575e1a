"use strict";
// Digests copy themselves when clicked.
(() => {
  for (const digest of document.querySelectorAll(".digest")) {
    digest.onclick = async () => {
      const short = digest.textContent;
      try {
        await navigator.clipboard.writeText(digest.dataset.full);
        digest.textContent = "copied";
        digest.classList.add("copied");
      } catch {
        digest.textContent = digest.dataset.full;
        return;
      }
      setTimeout(() => { digest.textContent = short; digest.classList.remove("copied"); }, 1200);
    };
  }
})();
