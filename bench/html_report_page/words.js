"use strict";

// Numbers and models in words.

const MINUS = "\u2212";
const GAP = "\u00a0"; // keeps a number and its unit on one line

function number(value, digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("en-GB", options).replace(/^-/, MINUS);
}

/** Decimals that give the smallest of these three significant digits, so that a column lines up. */
function decimals(values) {
  const sizes = values.filter((value) => value > 0);
  if (!sizes.length) return 0;
  return Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.min(...sizes)))));
}

function short(value) {
  return number(value, decimals([value]));
}

function milliseconds(value) {
  return `${short(value)}${GAP}ms`;
}

function bytes(value) {
  const unit = value < 2 ** 20 ? ["KiB", 2 ** 10] : value < 2 ** 30 ? ["MiB", 2 ** 20] : ["GiB", 2 ** 30];
  const size = value / unit[1];
  return number(size, size < 10 ? 1 : 0) + GAP + unit[0];
}

function times(ratio) {
  return `${number(ratio, ratio < 10 ? 2 : 1)}x`;
}

function percent(share, digits) {
  const value = 100 * share;
  return `${number(value, digits ?? (value < 1 ? 2 : value < 10 ? 1 : 0))}${GAP}%`;
}

function signed(value, digits) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

function interval(pair, digits) {
  return pair ? `${number(pair[0], digits)} to ${number(pair[1], digits)}` : null;
}

function probability(p) {
  return ["p", ...(p < 0.001 ? ["<", "0.001"] : ["=", number(p, 3)])].join(GAP);
}

function counted(count, noun) {
  return `${number(count, 0)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Cut the middle out of a long name: paths differ at their ends. */
function clipped(name, length) {
  if (name.length <= length) return name;
  const tail = Math.ceil((length - 1) / 2);
  return `${name.slice(0, length - 1 - tail)}\u2026${name.slice(-tail)}`;
}

function providerWord(provider) {
  const known = { cpu: "CPU", cuda: "CUDA", tensorrt: "TensorRT" };
  return known[provider] || provider;
}

function settingWords(row) {
  const threads = row.threads === 0 ? "all cores" : counted(row.threads, "thread");
  return `${providerWord(row.provider)}, ${threads}, batch ${row.batch_size}`;
}

/** A reference without the folders of its files: nets.py:net,weights=net.safetensors; a plain path stays as it is. */
function referenceWords(reference) {
  return /\.py:/.test(reference) ? reference.replace(/[^,=]*[\\/]/g, "") : reference;
}

/** Data without the folder it is in. */
function dataWords(reference) {
  return reference.replace(/[\\/]+$/, "").replace(/^[^,]*[\\/]/, "");
}

/** Name the rows of a setting: torch modules may run in several ways, and paths need not start with what all share. */
function rowNames(rows) {
  const names = rows.map((row) => referenceWords(row.name));
  const folders = names.map((name) => name.split(/[\\/]/).slice(0, -1)).filter((path) => path.length);
  const head = (path, length) => path.slice(0, length).join("/");
  let shared = folders.length < 2 ? 0 : Math.min(...folders.map((path) => path.length));
  while (shared && folders.some((path) => head(path, shared) !== head(folders[0], shared))) shared -= 1;
  const start = shared ? head(folders[0], shared).length + 1 : 0;
  return rows.map((row, index) => {
    const name = /[\\/]/.test(names[index]) ? names[index].slice(start) : names[index];
    const alone = rows.filter((other) => other.name === row.name).length === 1;
    return alone ? name : `${name} (${row.runtime})`;
  });
}

function accuracyOf(row) {
  return percent(row.quality.accuracy / 100, 2);
}

function providerShort(name) {
  return name.replace(/ExecutionProvider$/, "");
}

function verdictClass(verdict) {
  if (["faster", "better", "improved"].includes(verdict)) return "good";
  return ["slower", "worse", "regressed"].includes(verdict) ? "bad" : "even";
}

/** What the headline says of a model against the first. */
function sentence(row, first, name, firstName) {
  if (!row.speedup) {
    const accuracy = row.quality ? `, ${accuracyOf(row)} accurate` : "";
    return `${name} is the baseline: ${milliseconds(row.latency.p50_ms)} a run, ${bytes(row.size_bytes)}${accuracy}`;
  }
  const speed =
    row.speedup.verdict === "no difference shown"
      ? `No difference in speed shown between ${name} and ${firstName}`
      : `${name} runs at ${times(row.speedup.ratio)} the speed of ${firstName}`;
  return `${speed}, at ${percent(row.size_bytes / first.size_bytes)} of its size${accuracyWords(row.change)}`;
}

function accuracyWords(change) {
  if (!change) return "";
  if (change.verdict === "no difference shown") return ", with no difference in accuracy shown";
  return `, and is ${number(Math.abs(change.drop), 2)} points ${change.drop > 0 ? "less" : "more"} accurate`;
}
