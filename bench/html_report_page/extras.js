// What was measured beside speed and accuracy, where it was asked for: a section with a table for each.

function fillExtras(report) {
  const found = [regression, corruptions, attack, service].map((read) => read(report)).filter(Boolean);
  fill("extras", ...found.map(extraSection));
}

function extraSection({ name, title, note, columns, count, records }) {
  const heading = element("h2", title);
  heading.id = `${name}-title`;
  const button = element("button", "\u2193 CSV");
  button.type = "button";
  button.id = `download-${name}`;
  button.addEventListener("click", () => save(`${name}.csv`, "text/csv", csv(records)));
  const box = element("div", table(title, columns, count), "scroll");
  box.id = name;
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  const section = element("section", [element("div", [heading, button], "title"), element("p", note), box]);
  for (const one of [box, section]) one.setAttribute("aria-labelledby", heading.id);
  return section;
}

function regression({ regression: found }) {
  if (!found) return null;
  const changes = found.changes;
  const words = { p50_ms: "p50, ms", size_bytes: "size, bytes", accuracy: "accuracy, %" };
  const plainNumber = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 6 });
  const missing = found.not_compared.map((one) => ` Not compared: ${one}.`).join("");
  return {
    name: "regression",
    title: "Against the old report",
    note:
      "Intervals are those of the new figure over the old, for accuracy of the points lost; " +
      `what lies beyond its tolerance with its whole interval is called a change.${missing}`,
    columns: [
      ["Model", (index) => referenceWords(changes[index].name)],
      ["Setting", (index) => settingWords(changes[index])],
      ["Figure", (index) => words[changes[index].figure] || changes[index].figure],
      ["Before", (index) => plainNumber(changes[index].before), "number"],
      ["After", (index) => plainNumber(changes[index].after), "number"],
      ["Interval", (index) => interval(changes[index].interval, 3) || "-", "number"],
      ["Verdict", (index) => badge(changes[index].verdict)],
    ],
    count: changes.length,
    records: changes.map((one) => flat(one, "")),
  };
}

function corruptions({ corruptions: found }) {
  if (!found) return null;
  const { rows } = found;
  const kinds = [...new Set(rows[0].corrupted.map((one) => one.corruption))];
  const mean = (row, kind) => {
    const accuracies = row.corrupted.filter((one) => one.corruption === kind).map((one) => one.accuracy);
    return accuracies.reduce((sum, one) => sum + one, 0) / accuracies.length;
  };
  return {
    name: "corruptions",
    title: "On corrupted images",
    note:
      `Accuracy in percent on ${counted(found.samples, "sample")} of the ${found.split} split of ${dataWords(found.data)}, ` +
      `each corruption the mean of severities ${found.severities.join(", ")}.`,
    columns: [
      ["Model", (index) => referenceWords(rows[index].name)],
      figures(rows, "Clean", (row) => row.clean_accuracy),
      ...kinds.map((kind) => figures(rows, kind, (row) => mean(row, kind))),
      figures(rows, "Mean", (row) => row.mean_accuracy),
      figures(rows, "Points lost", (row) => row.mean_drop),
    ],
    count: rows.length,
    records: rows.flatMap(({ name, clean_accuracy, corrupted }) =>
      corrupted.map((one) => ({ name, clean_accuracy, ...one })),
    ),
  };
}

function attack({ attack: found }) {
  if (!found) return null;
  const rows = [found.source, ...found.rows];
  const step = number(255 * found.epsilon, 1).replace(/\.0$/, "");
  return {
    name: "attack",
    title: "Under attack",
    note:
      `Accuracy in percent under ${found.attack} with a step of ${step}/255, ` +
      `on ${counted(found.samples, "sample")} of the ${found.split} split of ${dataWords(found.data)}. ` +
      "Images crafted on another model flatter: an attack on a model's own gradients could hurt more.",
    columns: [
      ["Model", (index) => referenceWords(rows[index].name)],
      figures(rows, "Clean", (row) => row.clean_accuracy),
      figures(rows, "Attacked", (row) => row.attacked_accuracy),
      figures(rows, "Points lost", (row) => row.drop),
      ["Crafted on", (index) => (rows[index].is_transfer ? referenceWords(found.source.name) : "itself")],
    ],
    count: rows.length,
    records: rows.map((row) => ({ ...row, epsilon: found.epsilon })),
  };
}

function service({ service: rows }) {
  if (!rows || !rows.length) return null;
  const server = rows.map((row) => row.server).find(Boolean);
  const single = (percentile) => (row) => row.single_stream && row.single_stream[`p${percentile}_ms`];
  const limit = server && ` The server's rate is the highest whose p99 stays within ${milliseconds(server.slo_ms)}.`;
  return {
    name: "service",
    title: "As a service",
    note: `MLPerf LoadGen ${rows[0].loadgen} on ${providerWord(rows[0].provider)}.${limit || ""}`,
    columns: [
      ["Model", (index) => referenceWords(rows[index].name)],
      figures(rows, "Single stream p50, ms", single(50), 3),
      figures(rows, "p90, ms", single(90), 3),
      figures(rows, "p99, ms", single(99), 3),
      figures(rows, "Offline, samples a second", (row) => row.offline && row.offline.samples_per_second, 0),
      figures(rows, "Server, queries a second", (row) => row.server && row.server.rate, 0),
      figures(rows, "Server p99, ms", (row) => row.server && row.server.p99_ms, 3),
    ],
    count: rows.length,
    records: rows.map(({ machine, versions, ...row }) => flat(row, "")),
  };
}

/** A column of one figure of every row, - where it was not measured. */
function figures(rows, heading, read, digits = 2) {
  const cell = (index) => (read(rows[index]) === null ? "-" : number(read(rows[index]), digits));
  return [heading, cell, "number"];
}
