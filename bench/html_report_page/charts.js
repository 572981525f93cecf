// Charts. Colours come from the page's style, so that both have one theme.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"];
const COLOURS = 6;
const MOST_OPERATORS = 8;

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The baseline is grey, the last model has the page's accent, those between take what is left. */
function modelColour(index, count) {
  if (index === 0 && count > 1) return style("--series-0");
  if (index === count - 1) return style("--series-1");
  return style(`--series-${2 + ((index - 1) % (COLOURS - 2))}`);
}

/** Plotly reads markup in its texts; a name is no markup. */
function literal(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 12, font: { size: 13, color: style("--muted") } },
    gridcolor: style("--line"),
    linecolor: style("--line"),
    zeroline: false,
    fixedrange: true,
    automargin: true,
    nticks: 7,
    ...more,
  };
}

function draw(id, traces, layout, description) {
  const box = document.getElementById(id);
  const base = {
    width: box.clientWidth,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: style("--text") },
    margin: { l: 56, r: 16, t: 12, b: 52 },
    dragmode: false,
    showlegend: false,
    hovermode: "closest",
    hoverlabel: {
      bgcolor: style("--surface"),
      bordercolor: style("--line"),
      font: { family: getComputedStyle(document.body).fontFamily, color: style("--text") },
      align: "left",
    },
  };
  Plotly.react(box, traces, { ...base, ...layout }, { displayModeBar: false });
  box.setAttribute("aria-label", description);
}

/** Indices of the points that no other beats in x without losing in y; smaller is better in both. */
function paretoFront(points) {
  const order = points.map((_, index) => index).sort((a, b) => points[a].x - points[b].x || points[a].y - points[b].y);
  let best = Infinity;
  return order.filter((index) => {
    const leads = points[index].y < best;
    best = Math.min(best, points[index].y);
    return leads;
  });
}

function padded(values, share, least) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = Math.max((high - low) * share, least);
  return [low - pad, high + pad];
}

/** Accuracy over latency with its front; without accuracy, size over latency. */
function drawFront(rows, names, selected) {
  const accurate = rows.every((row) => row.quality);
  const x = rows.map((row) => row.latency.p50_ms);
  const y = rows.map((row) => (accurate ? row.quality.accuracy : row.size_bytes / 2 ** 20));
  const front = paretoFront(rows.map((_, index) => ({ x: x[index], y: accurate ? -y[index] : y[index] })));
  const onFront = new Set(front);
  const xEnds = rows.flatMap((row) => row.latency.p50_interval_ms || [row.latency.p50_ms]);
  const yEnds = accurate ? rows.flatMap((row) => row.quality.accuracy_interval) : y;
  const xRange = [0, Math.max(...xEnds, ...x) * 1.12];
  const yRange = accurate ? padded(yEnds, 0.08, 0.05) : [0, Math.max(...y) * 1.15];
  const colours = rows.map((_, index) => modelColour(index, rows.length));
  const around = (pairs, centres) => ({
    type: "data",
    symmetric: false,
    array: pairs.map((pair, index) => (pair ? pair[1] - centres[index] : 0)),
    arrayminus: pairs.map((pair, index) => (pair ? centres[index] - pair[0] : 0)),
    color: style("--faint"),
    thickness: 1,
    width: 3,
  });
  const steps = {
    type: "scatter",
    mode: "lines",
    x: [...front.map((index) => x[index]), xRange[1]],
    y: [...front.map((index) => y[index]), y[front[front.length - 1]]],
    line: { shape: "hv", color: style("--faint"), width: 2, dash: "dot" },
    hoverinfo: "skip",
  };
  const unit = accurate ? "%" : "MiB";
  const points = {
    type: "scatter",
    mode: "markers",
    x,
    y,
    error_x: around(rows.map((row) => row.latency.p50_interval_ms), x),
    marker: {
      size: rows.map((_, index) => (index === selected ? 17 : 12)),
      opacity: 1,
      symbol: rows.map((_, index) => SYMBOLS[index % SYMBOLS.length] + (onFront.has(index) ? "" : "-open")),
      color: colours,
      line: { width: rows.map((_, index) => (onFront.has(index) ? 0 : 2)), color: colours },
    },
    customdata: names.map(literal),
    hovertemplate: `<b>%{customdata}</b><br>%{x:.4g} ms<br>%{y:.4g} ${unit}<extra></extra>`,
  };
  if (accurate) points.error_y = around(rows.map((row) => row.quality.accuracy_interval), y);
  const height = 420;
  const margin = { l: 64, r: 16, t: 16, b: 56 };
  const width = document.getElementById("front").clientWidth;
  const toPixels = (index) => ({
    x: (x[index] / xRange[1]) * (width - margin.l - margin.r),
    y: (1 - (y[index] - yRange[0]) / (yRange[1] - yRange[0])) * (height - margin.t - margin.b),
  });
  const places = names.map((_, index) => toPixels(index));
  const labels = placeLabels(
    names.map((name) => clipped(name, width < 500 ? 17 : 26)),
    places,
    frontBoxes(front.map((index) => places[index]), width),
    width - margin.l - margin.r,
    height - margin.t - margin.b,
  );
  draw(
    "front",
    [steps, points],
    {
      height,
      margin,
      xaxis: axis("p50 latency, ms", { range: xRange, automargin: false }),
      yaxis: axis(accurate ? "accuracy, %" : "file size, MiB", { range: yRange, automargin: false }),
      annotations: labels.map((label, index) => ({
        x: x[index],
        y: y[index],
        xshift: label.dx,
        yshift: -label.dy,
        text: index === selected ? `<b>${literal(label.text)}</b>` : literal(label.text),
        showarrow: false,
        font: { color: colours[index] },
      })),
    },
    `${accurate ? "Accuracy" : "File size"} over latency. ` +
      names.map((name, index) => `${name}: ${short(x[index])} ms, ${short(y[index])} ${unit}`).join("; ") +
      `. On the front: ${front.map((index) => names[index]).join(", ")}.`,
  );
  return front;
}

/** The steps of the front as boxes {centre x, y, width, height} that labels keep off, in pixels. */
function frontBoxes(points, right) {
  return points.flatMap((point, index) => {
    const next = points[index + 1] || { x: right, y: point.y };
    return [
      { x: (point.x + next.x) / 2, y: point.y, w: next.x - point.x, h: 2 },
      { x: next.x, y: (point.y + next.y) / 2, w: 2, h: Math.abs(next.y - point.y) },
    ];
  });
}

/** Put each label where it is its point's and covers least: of points, of labels before it, and of lines. */
function placeLabels(texts, points, lines, width, height) {
  const taken = points.map((point) => ({ x: point.x, y: point.y, w: 20, h: 20 }));
  return texts.map((text, index) => {
    const w = textWidth(text) + 8;
    const h = 20;
    const right = w / 2 + 14;
    const places = [14, 24, 34, 44, 54].flatMap((off) => [
      [right, -off], [-right, -off], [right, off], [-right, off], [0, -off - 10], [0, off + 10], [w / 4, -off - 10],
      [-w / 4, -off - 10], [w / 4, off + 10], [-w / 4, off + 10],
    ]);
    const own = points[index];
    const within = (x) => Math.min(Math.max(x, w / 2), width + 12 - w / 2);
    const tried = places.map(([dx, dy]) => ({ x: within(own.x + dx), y: own.y + dy, w, h }));
    const inside = tried.filter((box) => box.y > h / 2 && box.y < height - h / 2);
    const covered = (box, others) => others.filter((other) => overlap(box, other)).length;
    const away = (box, point) => Math.hypot(box.x - point.x, box.y - point.y);
    const strays = (box) => (points.some((point) => away(box, point) < away(box, own)) ? 3 : 0);
    const costs = inside.map((box) => 10 * covered(box, taken) + covered(box, lines) + strays(box));
    const box = inside[costs.indexOf(Math.min(...costs))];
    taken.push(box);
    return { text, dx: box.x - own.x, dy: box.y - own.y };
  });
}

function textWidth(text) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = `bold 13px ${getComputedStyle(document.body).fontFamily}`;
  return context.measureText(text).width;
}

function overlap(a, b) {
  return Math.abs(a.x - b.x) < (a.w + b.w) / 2 && Math.abs(a.y - b.y) < (a.h + b.h) / 2;
}

/** The share of runs that took no longer than a time, for every model. */
function drawDistributions(rows, names, selected) {
  const edge = 1.05 * Math.max(...rows.map((row) => row.latency.percentiles_ms[99]));
  const narrow = document.getElementById("distributions").clientWidth < 500; // there the legend has a line for each
  const quickest = Math.min(...rows.map((row) => row.latency.percentiles_ms[0]));
  const start = quickest > edge / 2 ? 0.9 * quickest : 0; // from 0 where that leaves the curves room
  const traces = rows.map((row, index) => ({
    type: "scatter",
    mode: "lines",
    name: literal(clipped(names[index], 26)),
    x: row.latency.percentiles_ms,
    y: row.latency.percentiles_ms.map((_, percentile) => percentile),
    line: {
      color: modelColour(index, rows.length),
      width: index === selected ? 3.5 : 2,
      dash: DASHES[index % DASHES.length],
    },
    hovertemplate: `<b>${literal(names[index])}</b><br>%{y} % of runs within %{x:.4g} ms<extra></extra>`,
  }));
  draw(
    "distributions",
    traces,
    {
      height: 310 + 20 * (narrow ? rows.length : Math.ceil(rows.length / 4)),
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: "toggle", itemdoubleclick: false },
      xaxis: axis("time of a run, ms", { range: [start, edge] }),
      yaxis: axis("runs within, %", { range: [0, 101] }),
    },
    "Share of runs within a time. " +
      names.map((name, index) => `${name}: half within ${milliseconds(rows[index].latency.p50_ms)}`).join("; "),
  );
}

/** Bars of one or more stacked parts for every model: parts are {name, values, colours}, null where not measured. */
function drawBars(id, names, parts, words) {
  const totals = names.map((_, index) => parts.reduce((sum, part) => sum + (part.values[index] ?? 0), 0));
  const labels = names.map((name) => literal(clipped(name, 24)));
  const traces = parts.map((part) => ({
    type: "bar",
    orientation: "h",
    x: part.values,
    y: names.map((_, index) => index),
    marker: { color: part.colours },
    customdata: names.map((name, index) => [
      literal(name),
      part.values[index] === null ? "" : words(part.values[index]),
      part.name,
    ]),
    hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[2]}: %{customdata[1]}<extra></extra>",
  }));
  draw(
    id,
    traces,
    {
      height: 46 * names.length + 12,
      margin: { l: 0, r: 0, t: 0, b: 0 },
      barmode: "stack",
      bargap: 0.62,
      xaxis: axis("", { visible: false, range: [0, Math.max(...totals, 1e-9) * 1.01], automargin: false }),
      yaxis: axis("", { visible: false, range: [names.length - 0.4, -0.75], automargin: false }),
      // The name and the figure stand above the bar, which leaves it the whole width of a phone.
      annotations: names.flatMap((_, index) => [
        { x: 0, xref: "paper", xanchor: "left", y: index - 0.42, text: labels[index], showarrow: false },
        {
          x: 1,
          xref: "paper",
          xanchor: "right",
          y: index - 0.42,
          text: parts[0].values[index] === null ? "-" : `<b>${words(totals[index])}</b>`,
          showarrow: false,
        },
      ]),
    },
    names
      .map((name, index) => `${name}: ${parts[0].values[index] === null ? "not measured" : words(totals[index])}`)
      .join("; "),
  );
}

function drawCosts(rows, names) {
  const colours = rows.map((_, index) => modelColour(index, rows.length));
  const faint = rows.map(() => style("--faint"));
  const cost = (read) => rows.map((row) => (row.cost ? read(row.cost) : null));
  drawBars("size", names, [{ name: "file", values: rows.map((row) => row.size_bytes), colours }], bytes);
  drawBars(
    "memory",
    names,
    [
      { name: "before the model is opened", values: cost((one) => one.empty_rss_bytes), colours: faint },
      { name: "with the model", values: cost((one) => one.peak_rss_bytes - one.empty_rss_bytes), colours },
    ],
    bytes,
  );
  drawBars(
    "start",
    names,
    [
      { name: "load", values: cost((one) => one.load_ms), colours },
      { name: "first run", values: cost((one) => one.first_run_ms), colours: faint },
    ],
    milliseconds,
  );
}

/** Time by operator, most first; returns [operator, ms, nodes] of each. */
function operatorTimes(nodes) {
  const found = new Map();
  for (const node of nodes) {
    const [ms, count] = found.get(node.operator) || [0, 0];
    found.set(node.operator, [ms + node.ms, count + 1]);
  }
  return [...found].map(([operator, [ms, count]]) => [operator, ms, count]).sort((a, b) => b[1] - a[1]);
}

/** The first operators, and what is left of them as one. */
function fewest(operators) {
  if (operators.length <= MOST_OPERATORS) return operators;
  const rest = operators.slice(MOST_OPERATORS - 1);
  const total = (column) => rest.reduce((sum, one) => sum + one[column], 0);
  return [...operators.slice(0, MOST_OPERATORS - 1), [`${rest.length} other operators`, total(1), total(2)]];
}

function drawProfile(nodes) {
  const operators = fewest(operatorTimes(nodes));
  const total = nodes.reduce((sum, node) => sum + node.ms, 0);
  const accent = style("--series-1");
  drawBars(
    "operators",
    operators.map(([operator, , count]) => `${operator}, ${counted(count, "node")}`),
    [{ name: "time", values: operators.map(([, ms]) => ms), colours: operators.map(() => accent) }],
    (ms) => `${milliseconds(ms)}, ${percent(ms / (total || 1))}`,
  );
  const slowest = nodes.reduce((most, node) => (node.ms > most.ms ? node : most), nodes[0]);
  draw(
    "order",
    [
      {
        type: "bar",
        x: nodes.map((_, index) => index + 1),
        y: nodes.map((node) => node.ms),
        marker: { color: accent },
        customdata: nodes.map((node) => [literal(clipped(node.name, 40)), literal(node.operator)]),
        hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[1]}: %{y:.4g} ms<extra></extra>",
      },
    ],
    {
      height: 260,
      bargap: 0.15,
      xaxis: axis("node", { showgrid: false }),
      yaxis: axis("ms", { rangemode: "tozero", nticks: 5 }),
    },
    `Time of ${counted(nodes.length, "node")} in the order they ran; ` +
      `the slowest is ${slowest.name} with ${milliseconds(slowest.ms)}.`,
  );
}
