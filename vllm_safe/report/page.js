// Draws the plots of a report. All data comes from the JSON in #run, and is shown only as text on a canvas or as numbers.
"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run").textContent);
  const BREAK = 60; // seconds without a sample after which no line is drawn across the gap
  const RANK = ["bad", "guard", ""];
  const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500];
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
  const BYTES = UNITS.flatMap((_, power) => STEPS.map((step) => step * 1024 ** power));

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const plain = (value) => String(Number(value.toPrecision(3)));
  const size = (value) => {
    const power = value < 1 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10));
    return `${plain(value / 1024 ** power)} ${UNITS[power]}`;
  };
  const SAY = {
    bytes: size,
    "bytes/s": (value) => `${size(value)}/s`,
    share: (value) => `${plain(value * 100)} %`,
    watts: (value) => `${plain(value)} W`,
    celsius: (value) => `${plain(value)} °C`,
    count: (value) => (value < 10 ? plain(value) : Math.round(value).toLocaleString("en").replaceAll(",", "\u202f")),
  };
  // Times in the server's time zone, not in that of the browser.
  const serverTime = (seconds) => uPlot.tzDate(new Date((seconds + run.offset) * 1000), "Etc/UTC");
  const clock = (seconds) => new Date((seconds + run.offset) * 1000).toISOString().slice(11, 19);

  // The columns, with a gap where the recorder wrote no samples.
  const holes = run.time.flatMap((time, at) => (at && time - run.time[at - 1] > BREAK ? [at] : []));
  const holed = (values, filler) => {
    const result = values.slice();
    for (const at of holes.toReversed()) result.splice(at, 0, filler(at));
    return result;
  };
  const times = holed(run.time, (at) => (run.time[at - 1] + run.time[at]) / 2);
  const begin = Math.min(run.begin, times[0] ?? run.begin);
  const end = Math.max(run.end, begin + 1);

  const sum = (columns) => columns[0].map((_, at) => columns.reduce((total, column) => total + (column[at] ?? 0), 0));

  function phases(plot, named) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height);
    ctx.clip();
    ctx.font = `${11 * devicePixelRatio}px ${colour("sans")}`;
    run.phases.forEach((phase, number) => {
      const left = plot.valToPos(phase.begin, "x", true);
      const width = plot.valToPos(phase.end, "x", true) - left;
      if (number % 2 === 0) {
        ctx.fillStyle = colour("band");
        ctx.fillRect(left, bbox.top, width, bbox.height);
      }
      const seen = Math.max(left, bbox.left);
      if (named && ctx.measureText(phase.phase).width + 8 * devicePixelRatio < left + width - seen) {
        ctx.fillStyle = colour("soft");
        ctx.fillText(phase.phase, seen + 4 * devicePixelRatio, bbox.top - 20 * devicePixelRatio);
      }
    });
    ctx.restore();
  }

  function events(plot, named) {
    const { ctx, bbox } = plot;
    const taken = []; // horizontal ranges taken by numbers; the most important events are placed first
    ctx.save();
    ctx.font = `600 ${10 * devicePixelRatio}px ${colour("sans")}`;
    ctx.textAlign = "center";
    ctx.lineWidth = devicePixelRatio;
    for (const event of run.events.toSorted((a, b) => RANK.indexOf(a.tone) - RANK.indexOf(b.tone))) {
      const at = Math.round(plot.valToPos(event.time, "x", true));
      if (at < bbox.left - 1 || at > bbox.left + bbox.width + 1) continue;
      ctx.strokeStyle = ctx.fillStyle = colour({ bad: "bad", guard: "warn" }[event.tone] ?? "soft");
      ctx.setLineDash(event.tone ? [] : [2 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.globalAlpha = event.tone ? 0.8 : 0.5;
      ctx.beginPath();
      ctx.moveTo(at, bbox.top - (named ? 4 * devicePixelRatio : 0));
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
      const half = ctx.measureText(String(event.number)).width / 2;
      const room = 3 * devicePixelRatio;
      if (named && taken.every(([left, right]) => at + half + room < left || at - half - room > right)) {
        ctx.globalAlpha = 1;
        ctx.fillText(String(event.number), at, bbox.top - 6 * devicePixelRatio);
        taken.push([at - half, at + half]);
      }
    }
    ctx.restore();
  }

  function build(figure, plot, first) {
    const box = figure.querySelector(".canvas");
    const say = SAY[plot.unit];
    const raw = plot.lines.map((line) => holed(run.columns[line.key], () => null));
    // The total is drawn behind its parts: each line is the sum of itself and the lines below it.
    const order = plot.stacked ? raw.map((_, at) => raw.length - 1 - at) : raw.map((_, at) => at);
    const drawn = order.map((at) => (plot.stacked ? sum(raw.slice(0, at + 1)) : raw[at]));
    const series = order.map((at) => ({
      label: plot.lines[at].label,
      stroke: colour(`c${(at % 8) + 1}`),
      fill: plot.stacked || raw.length === 1 ? `${colour(`c${(at % 8) + 1}`)}${plot.stacked ? "66" : "2e"}` : undefined,
      width: 1.5,
      points: { show: false },
      value: (_, __, ___, index) => (index === null || raw[at][index] === null ? "–" : say(raw[at][index])),
    }));
    if (plot.limit_drawn) {
      drawn.push(times.map(() => plot.limit));
      series.push({ label: plot.limit_label, stroke: colour("limit"), width: 1.5, dash: [7, 4], points: { show: false }, value: () => say(plot.limit) });
    }
    const top = Math.max(plot.peak, plot.limit_drawn ? plot.limit : 0, plot.unit === "share" ? 0.1 : 0) || 1;
    const narrow = () => box.clientWidth < 560;
    const measure = () => ({ width: box.clientWidth, height: (narrow() ? 150 : 165) + (first ? 34 : 0) });
    const axis = { stroke: colour("soft"), font: `12px ${colour("sans")}`, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false } };
    const hour = end - begin > 86400 ? "{HH}:{mm}\n{YYYY}-{MM}-{DD}" : "{HH}:{mm}";
    const chart = new uPlot(
      {
        ...measure(),
        tzDate: serverTime,
        padding: [first ? 40 : 8, 10, 0, 0],
        cursor: { sync: { key: "run" }, drag: { x: true, y: false, uni: 20 }, y: false, points: { size: 6 } },
        legend: { live: true, markers: { fill: (u, at) => (series[at - 1]?.dash ? "transparent" : series[at - 1]?.stroke) } },
        scales: {
          x: { time: true, range: (_, low, high) => (low === times[0] && high === times.at(-1) ? [begin, end] : [low, high]) },
          y: { range: () => [0, plot.unit === "share" ? Math.min(1, top * 1.08) : top * 1.08] },
        },
        axes: [
          { ...axis, size: end - begin > 86400 ? 44 : 28, space: narrow() ? 56 : 80,
            values: (_, marks, __, ___, step) => marks.map((mark) => uPlot.fmtDate(step < 60 ? "{HH}:{mm}:{ss}" : hour)(serverTime(mark))) },
          { ...axis, size: narrow() ? 58 : 72, space: 30, incrs: plot.unit.startsWith("bytes") ? BYTES : undefined,
            values: (_, marks) => marks.map((mark) => say(mark)) },
        ],
        series: [{ label: "time", value: (_, time) => (time === null ? "–" : clock(time)) }, ...series],
        bands: plot.stacked ? raw.slice(1).map((_, at) => ({ series: [at + 1, at + 2] })) : [],
        hooks: { drawClear: [(u) => phases(u, first)], draw: [(u) => events(u, first)] },
      },
      [times, ...drawn],
      box,
    );
    figure.dataset.points = String(chart.data[0].length - holes.length);
    return { chart, measure };
  }

  let built = [];
  function draw() {
    for (const { chart } of built) chart.destroy();
    built = run.plots.map((plot, at) => build(document.getElementById(`plot-${plot.key}`), plot, at === 0));
  }
  draw();

  let before = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === before) return; // on a phone only the height changes when the address bar hides
    before = innerWidth;
    for (const { chart, measure } of built) chart.setSize(measure());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // For printing, the page is white and narrower.
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    document.querySelector("main").style.width = "700px";
    draw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    document.querySelector("main").style.width = "";
    draw();
  });
  const log = document.getElementById("log");
  if (log) log.scrollTop = log.scrollHeight;
})();
