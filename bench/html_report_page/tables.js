// Tables and lists. Every text goes in as text, never as markup.

const TOP_NODES = 12;

function element(tag, content, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...[content ?? ""].flat());
  return made;
}

function fill(id, ...content) {
  document.getElementById(id).replaceChildren(...content);
}

function badge(verdict) {
  return element("span", verdict, `verdict ${verdictClass(verdict)}`);
}

/** A figure with what is said under it. */
function stacked(main, ...below) {
  return [main, ...below.filter(Boolean).map((line) => element("small", line))];
}

/** Make a table of columns [heading, cell of an index, class]; the first heads its row. */
function table(caption, columns, count, selected) {
  const made = element("table", element("caption", caption));
  const heads = columns.map(([heading, , className]) => {
    const head = element("th", heading, className);
    head.scope = "col";
    return head;
  });
  made.append(element("thead", element("tr", heads)));
  const rows = Array.from({ length: count }, (_, index) => {
    const cells = columns.map(([, cell, className], column) => {
      const made = element(column ? "td" : "th", cell(index), className);
      if (!column) made.scope = "row";
      return made;
    });
    return element("tr", cells, index === selected ? "selected" : "");
  });
  made.append(element("tbody", rows));
  return made;
}

function fillTiles(row, first) {
  const tile = (term, big, lines, verdict) =>
    element("div", [
      element("dt", term),
      element("dd", big, "big"),
      ...(verdict ? [element("dd", badge(verdict))] : []),
      ...lines.filter(Boolean).map((line) => element("dd", line)),
    ]);
  const base = row === first ? null : first;
  fill(
    "tiles",
    speedTile(tile, row, base),
    tile("Size", base ? percent(row.size_bytes / base.size_bytes) : bytes(row.size_bytes), [
      base && `${bytes(row.size_bytes)} instead of ${bytes(base.size_bytes)}`,
    ]),
    ...accuracyTile(tile, row, base),
    ...memoryTile(tile, row, base),
  );
}

function speedTile(tile, row, base) {
  const { speedup, latency, throughput } = row;
  if (!base || !speedup) {
    return tile("Latency", milliseconds(latency.p50_ms), [`${short(throughput)} samples a second`]);
  }
  const lines = [
    `${milliseconds(latency.p50_ms)} instead of ${milliseconds(base.latency.p50_ms)}`,
    speedup.interval ? `99 % interval ${interval(speedup.interval, 2)}` : "too few rounds for an interval",
  ];
  return tile("Speed", times(speedup.ratio), lines, speedup.verdict);
}

function accuracyTile(tile, row, base) {
  const { quality, change } = row;
  if (!quality) return [];
  if (!base || !change) {
    return [tile("Accuracy", accuracyOf(row), [`95 % interval ${interval(quality.accuracy_interval, 2)}`])];
  }
  const low = signed(-change.drop_interval[1], 2);
  const high = signed(-change.drop_interval[0], 2);
  const lines = [
    `${accuracyOf(row)} instead of ${accuracyOf(base)}`,
    `95 % interval ${low} to ${high}, ${probability(change.mcnemar_p)}`,
  ];
  const big = [signed(-change.drop, 2), element("span", " points")];
  return [tile("Accuracy", big, lines, change.verdict)];
}

function memoryTile(tile, row, base) {
  if (!row.cost) return [];
  const lines = [
    base && base.cost && `instead of ${bytes(base.cost.peak_rss_bytes)}`,
    `${bytes(row.cost.empty_rss_bytes)} of it before the model is opened`,
  ];
  return [tile("Peak memory", bytes(row.cost.peak_rss_bytes), lines)];
}

function fillResults(rows, names, selected) {
  const timeColumn = (percentile) => {
    const values = rows.map((row) => row.latency[`p${percentile}_ms`]);
    const intervals = rows.map((row) => row.latency[`p${percentile}_interval_ms`]);
    const digits = decimals(values.filter((value) => value !== null));
    const cell = (index) =>
      values[index] === null ? "-" : stacked(number(values[index], digits), interval(intervals[index], digits));
    return [`p${percentile}, ms`, cell, "number"];
  };
  const costColumn = (heading, read) => [
    heading,
    (index) => (rows[index].cost ? read(rows[index].cost) : "-"),
    "number",
  ];
  const quality = (read) => (index) => (rows[index].quality ? read(rows[index].quality) : "-");
  const agreement = (index) => (rows[index].change ? number(rows[index].change.agreement, 2) : "-");
  const scored = rows.some((row) => row.quality);
  const costed = rows.some((row) => row.cost);
  const columns = [
    ["Model", (index) => names[index]],
    timeColumn(50),
    ["Speedup", (index) => speedupCell(rows[index].speedup), "number"],
    ["Size", (index) => bytes(rows[index].size_bytes), "number"],
    scored && [
      "Accuracy, %",
      quality((found) => stacked(number(found.accuracy, 2), interval(found.accuracy_interval, 2))),
      "number",
    ],
    scored && ["Drop, points", (index) => dropCell(rows[index].change), "number"],
    scored && ["Same answer, %", agreement, "number"],
    timeColumn(90),
    timeColumn(99),
    ["Samples a second", (index) => number(rows[index].throughput, rows[index].throughput < 10 ? 2 : 0), "number"],
    costed && costColumn("Peak memory", (cost) => bytes(cost.peak_rss_bytes)),
    costed && costColumn("Load, ms", (cost) => short(cost.load_ms)),
    costed && costColumn("First run, ms", (cost) => short(cost.first_run_ms)),
    scored && ["F1, %", quality((found) => number(found.f1, 2)), "number"],
    scored &&
      rows[0].quality.top5_accuracy !== null && ["Top 5, %", quality((found) => number(found.top5_accuracy, 2)), "number"],
  ].filter(Boolean);
  fill("results", table(`All models: ${settingWords(rows[0])}`, columns, rows.length, selected));
}

function speedupCell(speedup) {
  if (!speedup) return stacked("1", "baseline");
  return [...stacked(times(speedup.ratio), interval(speedup.interval, 2)), badge(speedup.verdict)];
}

function dropCell(change) {
  if (!change) return "-";
  const below = `${interval(change.drop_interval, 2)}, ${probability(change.mcnemar_p)}`;
  return [...stacked(number(change.drop, 2), below), badge(change.verdict)];
}

function fillNodes(nodes, all) {
  const total = nodes.reduce((sum, node) => sum + node.ms, 0) || 1;
  const sorted = [...nodes].sort((a, b) => b.ms - a.ms);
  const shown = all ? sorted : sorted.slice(0, TOP_NODES);
  const digits = decimals(shown.slice(0, TOP_NODES).map((node) => node.ms));
  const columns = [
    ["Node", (index) => shown[index].name, "code"],
    ["ms", (index) => number(shown[index].ms, digits), "number"],
    ["Share", (index) => percent(shown[index].ms / total, 1), "number"],
    ["Operator", (index) => shown[index].operator],
    ["Ran on", (index) => providerShort(shown[index].provider)],
  ];
  fill("nodes", table("Nodes, the slowest first", columns, shown.length));
  const button = document.getElementById("all-nodes");
  button.hidden = nodes.length <= TOP_NODES;
  button.textContent = all ? `Show only ${TOP_NODES}` : `Show all ${nodes.length} nodes`;
}

function fillPlacement(rows, names, selected) {
  const placed = (read) => (index) => (rows[index].placement ? read(rows[index].placement) : "-");
  const columns = [
    ["Model", (index) => names[index]],
    ["Asked for", placed((found) => providerShort(found.provider))],
    ["Placed there", placed((found) => percent(found.placed_ratio)), "number"],
    ["Nodes", placed((found) => listed(found.nodes, (name, count) => `${count} on ${providerShort(name)}`))],
    ["Ran elsewhere", placed((found) => listed(found.fell_back, (name, count) => `${name} (${count})`) || "none")],
    ["Copies to and from the device", placed((found) => number(found.copies, 0)), "number"],
  ];
  fill("placement", table(`Placement: ${settingWords(rows[0])}`, columns, rows.length, selected));
}

function listed(counts, words) {
  return Object.entries(counts)
    .map(([name, count]) => words(name, count))
    .join(", ");
}

function fillLineage(history, digestName) {
  const steps = history.map((step) => {
    const facts = Object.entries({ ...step.config }).map(([key, value]) => [key, plain(value)]);
    const origins = [
      ["made from", digestName(step.parent)],
      ...step.teachers.map((teacher) => ["taught by", digestName(teacher)]),
      ...(step.data ? [["data", digestName(step.data)]] : []),
    ];
    const details = element("details", [
      element("summary", `${counted(facts.length, "setting")} and versions`),
      factList(facts),
      element("h4", "Versions"),
      factList(Object.entries(step.versions)),
    ]);
    return element("li", [
      element("h3", step.stage),
      element("p", origins.map(([term, value]) => `${term} ${value}`).join(", "), "origins"),
      element("p", facts.map(([key, value]) => `${key} ${value}`).join(", "), "gist"),
      details,
    ]);
  });
  fill("lineage", ...steps);
}

function plain(value) {
  if (value === null || (Array.isArray(value) && !value.length)) return "none";
  if (Array.isArray(value)) return value.map(plain).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function factList(facts) {
  return element("dl", factItems(facts), "facts");
}

function factItems(facts) {
  return facts.map(([term, value]) => element("div", [element("dt", term), element("dd", value)]));
}
