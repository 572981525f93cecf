// What is shown: one setting's rows, one model of them, in one theme.

const source = document.getElementById("report").textContent;
const report = JSON.parse(source);
const settings = [...new Set(report.rows.map(settingWords))].map((words) => ({
  words,
  rows: report.rows.filter((row) => settingWords(row) === words),
}));
const shown = { setting: 0, model: settings[0].rows.length - 1, allNodes: false };

function show() {
  const { rows, words } = settings[shown.setting];
  const names = rowNames(rows);
  const row = rows[shown.model];
  fillOptions("model", names, shown.model);
  document.title = `${names[shown.model]}: bench report`;
  fill("sentence", sentence(row, rows[0], names[shown.model], names[0]));
  fill("circumstances", circumstances(row, words));
  fill("notes", ...notes());
  fillTiles(row, rows[0]);
  fillResults(rows, names, shown.model);
  fillPlacement(rows, names, shown.model);
  showLineage(row, names[shown.model]);
  showMachine(rows, row);
  fill("profile-title", `Where the time goes: ${names[shown.model]}`);
  showCharts();
}

/** Draw what depends on the width and the theme as well. */
function showCharts() {
  const { rows } = settings[shown.setting];
  const names = rowNames(rows);
  const accurate = rows.every((row) => row.quality);
  const front = drawFront(rows, names, shown.model);
  fill("front-title", accurate ? "Accuracy against latency" : "Size against latency");
  fill("front-note", frontNote(rows, names, front, accurate));
  drawDistributions(rows, names, shown.model);
  fill("distributions-note", distributionsNote(rows));
  drawCosts(rows, names);
  fill("cost-note", costNote(rows));
  showProfile(rows[shown.model]);
}

function showProfile(row) {
  const measured = row.nodes.length > 0;
  for (const id of ["operators", "order", "nodes-title", "nodes", "all-nodes"]) {
    const box = document.getElementById(id);
    (box.closest("figure") || box).hidden = !measured;
  }
  const total = row.nodes.reduce((sum, node) => sum + node.ms, 0);
  fill(
    "profile-note",
    measured
      ? `Medians of ${counted(row.nodes.length, "node")} as ONNX Runtime's profiler sees them, ` +
          `${milliseconds(total)} in all; without the profiler a run takes ${milliseconds(row.latency.p50_ms)}. Choose another model above.`
      : "This model has no profile: it does not run on ONNX Runtime.",
  );
  if (!measured) return;
  drawProfile(row.nodes);
  fillNodes(row.nodes, shown.allNodes);
}

function showLineage(row, name) {
  const named = new Map(report.rows.map((one) => [one.sha256, one.name]));
  fill("lineage-note", row.history.length ? `What made ${name}, step by step.` : `${name} brought no history with it.`);
  fillLineage(row.history, (digest) => named.get(digest) || digest.replace(/^([0-9a-f]{12})[0-9a-f]{28,}$/, "$1"));
}

function showMachine(rows, row) {
  const { machine, noise } = report;
  fill(
    "machine",
    ...factItems([
      ["Processor", machine.cpu],
      ["Architecture", machine.architecture],
      ["Cores", number(machine.cores, 0)],
      ["int8 instructions", machine.int8_instructions.join(", ") || "none"],
      ["GPU", machine.gpu || "none"],
      ["System", machine.system],
      ["Python", machine.python],
    ]),
  );
  fill(
    "measuring",
    ...factItems([
      ["Setting", settingWords(row)],
      ["Timed runs", number(row.latency.iterations, 0)],
      ["Rounds", number(row.latency.round_p50_ms.length, 0)],
      ["Warm-up runs", number(row.latency.warmup_runs, 0)],
      ["Half-width asked for", `\u00b1${percent(report.half_width)}`],
      ["Precision reached", report.sharp ? "yes" : "no"],
      ["Rounds off their median", percent(noise.round_spread_ratio, 1)],
      ["CPU taken by others", percent(noise.others_cpu_ratio, 1)],
    ]),
  );
  fill("versions", ...factItems(Object.entries(report.versions)));
}

function circumstances(row, words) {
  const accuracy = row.quality
    ? ` Accuracy on the ${report.split} split of ${dataWords(report.data)}, ${counted(row.quality.samples, "sample")}.`
    : "";
  return `Measured on ${report.machine.gpu || report.machine.cpu}: ${words}.${accuracy}`;
}

function notes() {
  const { noise, half_width: halfWidth, sharp } = report;
  const found = [];
  if (noise.noisy) {
    found.push(
      `Noisy machine: the baseline's rounds are ${percent(noise.round_spread_ratio, 1)} off their median, ` +
        `other processes took ${percent(noise.others_cpu_ratio, 0)} of the CPU.`,
    );
  }
  if (!sharp && settings[0].rows.length > 1) {
    const wide = `The speedups' intervals are wider than ${percent(halfWidth)}`;
    found.push(`${wide}: measure for longer or on a quieter machine.`);
  }
  return found.map((text) => element("p", text, "note"));
}

function frontNote(rows, names, front, accurate) {
  const better = accurate ? "at least as accurate" : "no larger";
  const beaten = rows.length - front.length;
  const list = front.map((index) => names[index]).join(", ");
  return (
    `The dotted line is the Pareto front: ${list}. ` +
    (beaten ? `An open mark has a model that is no slower and ${better}. ` : "No model is beaten in both. ") +
    "Thin bars are 95 % intervals."
  );
}

function distributionsNote(rows) {
  const slowest = Math.max(...rows.map((row) => row.latency.percentiles_ms[100]));
  return (
    "How many runs were done within a time: the further left and the steeper, the better. " +
    `The slowest 1 % may lie beyond the right edge; the slowest of all took ${milliseconds(slowest)}.`
  );
}

function costNote(rows) {
  if (!rows.some((row) => row.cost)) return "Memory and start were not measured.";
  return (
    "Memory and start are those of a process of its own that opens the model and runs it once. " +
    "In grey: the memory it held before, and the time of the first run, which follows the load."
  );
}

function fillOptions(id, words, selected) {
  const options = words.map((text, index) => {
    const option = element("option", text);
    option.value = index;
    option.selected = index === selected;
    return option;
  });
  fill(id, ...options);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function wire() {
  const on = (id, event, act) => document.getElementById(id).addEventListener(event, act);
  on("model", "change", (event) => {
    shown.model = Number(event.target.value);
    show();
  });
  on("setting", "change", (event) => {
    shown.setting = Number(event.target.value);
    show();
  });
  on("all-nodes", "click", () => {
    shown.allNodes = !shown.allNodes;
    fillNodes(settings[shown.setting].rows[shown.model].nodes, shown.allNodes);
  });
  on("theme", "click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    showCharts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    setTheme(event.matches ? "dark" : "light");
    showCharts();
  });
  on("download-json", "click", () => save("bench.json", "application/json", source));
  const tables = {
    results: resultRecords,
    distributions: distributionRecords,
    nodes: nodeRecords,
    lineage: lineageRecords,
  };
  for (const [name, records] of Object.entries(tables)) {
    on(`download-${name}`, "click", () => save(`${name}.csv`, "text/csv", csv(records(report))));
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's bars that come and go change the height alone
    width = innerWidth;
    requestAnimationFrame(showCharts);
  });
}

setTheme(document.documentElement.dataset.theme);
fillOptions("setting", settings.map((setting) => setting.words), 0);
document.getElementById("setting-label").hidden = settings.length === 1;
wire();
fillExtras(report);
show();
