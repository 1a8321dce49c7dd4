// Keyboard, theme and the cursor over tokens. Every page works without it.
"use strict";
(() => {
  const root = document.documentElement;
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  function turn() {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("corevital-theme", root.dataset.theme); } catch { /* only for this page, then */ }
    document.dispatchEvent(new Event("corevital:theme"));
  }

  document.getElementById("theme").addEventListener("click", turn);
  const keys = document.getElementById("keys");
  document.getElementById("help").addEventListener("click", () => keys.showModal());

  function step(by) {
    const rows = [...document.querySelectorAll(".requests .id a")];
    const at = rows.indexOf(document.activeElement);
    const next = rows[at < 0 ? 0 : Math.min(Math.max(at + by, 0), rows.length - 1)];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  function search() {
    const field = document.querySelector("input[type=search]");
    field?.focus();
    field?.select();
  }

  const places = { n: "/now", r: "/requests", t: "/trends", c: "/compare" };
  const actions = {
    "/": search,
    "?": () => keys.showModal(),
    "j": () => step(1),
    "k": () => step(-1),
    "[": () => document.querySelector("a[rel=prev]")?.click(),
    "]": () => document.querySelector("a[rel=next]")?.click(),
    "d": turn,
  };
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (going > Date.now() - 1000 && places[event.key]) {
      location.href = places[event.key];
      return;
    }
    going = event.key === "g" ? Date.now() : 0;
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  });

  // one token at a time: under the mouse, by the arrow keys, or by the charts' cursor
  const tokens = document.getElementById("tokens");
  if (!tokens) return;
  const line = document.getElementById("token");
  let here = null;

  function show(token) {
    if (!token || token === here) return;
    here?.classList.remove("here");
    here = token;
    here.classList.add("here");
    line.textContent = here.title;
    document.dispatchEvent(new CustomEvent("corevital:token", { detail: Number(here.dataset.at) }));
  }

  tokens.addEventListener("mouseover", (event) => show(event.target.closest("li")));
  tokens.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(here ? (by > 0 ? here.nextElementSibling : here.previousElementSibling) : tokens.firstElementChild);
    here?.scrollIntoView({ block: "nearest" });
  });
  document.addEventListener("corevital:chart", (event) => {
    const token = tokens.querySelector(`[data-at="${event.detail}"]`);
    if (token && token !== here) {
      here?.classList.remove("here");
      here = token;
      here.classList.add("here");
      line.textContent = here.title;
    }
  });
})();
