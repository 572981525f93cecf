// Every number of the report as CSV and JSON: of all models in all settings, whatever is selected.

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Objects as CSV, with a column for every key that any of them has. */
function csv(records) {
  const columns = [...new Set(records.flatMap(Object.keys))];
  const lines = [columns, ...records.map((record) => columns.map((column) => record[column] ?? ""))];
  return lines.map((cells) => cells.map(quoted).join(",") + "\r\n").join("");
}

function quoted(cell) {
  const text = String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

/** Values within values under dotted names; the ends of an interval are its low and high. */
function flat(value, name) {
  if (value === null) return {};
  if (Array.isArray(value)) {
    const ends = /interval/.test(name) ? ["low", "high"] : value.keys();
    return Object.assign({}, ...[...ends].map((end, index) => flat(value[index], `${name}.${end}`)));
  }
  if (typeof value !== "object") return { [name]: value };
  return Object.assign({}, ...Object.entries(value).map(([key, inner]) => flat(inner, name ? `${name}.${key}` : key)));
}

function identity(row) {
  const { name, runtime, provider, threads, batch_size } = row;
  return { name, runtime, provider, threads, batch_size };
}

function resultRecords(report) {
  const { rows, data, split, machine, versions, noise, half_width, sharp } = report;
  const context = { data, split, machine, versions, noise, half_width, sharp };
  const records = rows.map((row) => {
    const { percentiles_ms, round_p50_ms, ...latency } = row.latency;
    const quality = row.quality && { ...row.quality, right: null }; // which samples, not a figure
    const { nodes, history, ...figures } = { ...row, latency, quality };
    return flat({ ...figures, ...context }, "");
  });
  const order = Object.keys({ ...rows[0], ...context });
  const place = (column) => order.indexOf(column.split(".")[0]);
  const columns = [...new Set(records.flatMap(Object.keys))].sort((a, b) => place(a) - place(b));
  return records.map((record) => Object.fromEntries(columns.map((column) => [column, record[column]])));
}

function distributionRecords(report) {
  return report.rows.flatMap((row) => [
    ...row.latency.percentiles_ms.map((ms, index) => ({ ...identity(row), statistic: "percentile", index, ms })),
    ...row.latency.round_p50_ms.map((ms, index) => ({ ...identity(row), statistic: "round p50", index, ms })),
  ]);
}

function nodeRecords(report) {
  return report.rows.flatMap((row) =>
    row.nodes.map((node, index) => ({
      ...identity(row),
      node: node.name,
      operator: node.operator,
      ran_on: node.provider,
      order: index,
      ms: node.ms,
    })),
  );
}

function lineageRecords(report) {
  return report.rows.flatMap((row) =>
    row.history.flatMap((step, index) =>
      Object.entries(flat(step, "")).map(([field, value]) => ({ ...identity(row), step: index + 1, field, value })),
    ),
  );
}
