// Before the first paint: the theme that was chosen here earlier, if any.
"use strict";
try {
  const chosen = localStorage.getItem("corevital-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is turned off: follow the system */ }
document.documentElement.classList.add("scripted");
