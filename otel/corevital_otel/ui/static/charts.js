// The series of one request as charts that can be read and zoomed, in place of the pictures in the page.
"use strict";
(async () => {
  const place = document.getElementById("charts");
  const answer = await fetch(place.dataset.url, { headers: { Accept: "application/json" } });
  if (!answer.ok) return; // the pictures stay
  const { series, onset } = await answer.json();
  const positions = series.entropy.map((_, index) => index);
  const colour = (name) => {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    place.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const value = (digits) => (_, number) => number == null ? "–" : number.toFixed(digits);
  const whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6]; // steps between labels
  let plots = [];
  let quiet = false;

  function loopStart(plot) {
    if (onset === null) return;
    const { ctx, bbox } = plot;
    const x = Math.round(plot.valToPos(onset, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.save();
    ctx.fillStyle = colour("high");
    ctx.globalAlpha = 0.07;
    ctx.fillRect(x, bbox.top, bbox.left + bbox.width - x, bbox.height);
    ctx.globalAlpha = 1;
    ctx.strokeStyle = colour("high");
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  function draw() {
    plots.forEach((plot) => plot.destroy());
    place.replaceChildren();
    const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "11px system-ui, sans-serif" };
    const one = (names, label, range, height) => new uPlot({
      width: place.clientWidth,
      height,
      cursor: { sync: { key: "tokens" }, y: false, points: { size: 7 } },
      legend: { live: true },
      scales: { x: { time: false }, y: { range } },
      axes: [{ ...axis, size: 28, incrs: whole }, { ...axis, size: 44, label, labelSize: 18, labelFont: "11px system-ui, sans-serif" }],
      series: [{ label: "token" }, ...names.map((name) => ({
        label: name, stroke: colour(name), width: 1.5, spanGaps: false, value: value(2),
        points: { show: positions.length < 80, size: 5 },
      }))],
      hooks: {
        draw: [loopStart],
        setCursor: [(plot) => {
          if (!quiet && plot.cursor.idx != null) document.dispatchEvent(new CustomEvent("corevital:chart", { detail: plot.cursor.idx }));
        }],
      },
    }, [positions, ...names.map((name) => series[name])], place);
    plots = [
      one(["entropy", "surprisal"], "bits", (_, low, high) => [0, Math.max(1, Math.ceil(high))], 230),
      one(["margin"], "p1 − p2", () => [0, 1], 150),
    ];
  }

  draw();
  document.addEventListener("corevital:theme", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(() => plots.forEach((plot) => plot.setSize({ width: place.clientWidth, height: plot.height }))).observe(place);
  document.addEventListener("corevital:token", (event) => {
    quiet = true;
    plots.forEach((plot) => plot.setCursor({ left: plot.valToPos(event.detail, "x"), top: 20 }));
    quiet = false;
  });
  place.dataset.drawn = "1";
})();
