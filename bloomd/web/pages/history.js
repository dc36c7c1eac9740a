// The queue in the last hour, from the samples that the leader takes every half minute: how full it was, and what went through.

import { api } from "../api.js";
import { lines } from "../chart.js";
import { h } from "../dom.js";
import { number, t } from "../i18n.js";
import { card, problemBox } from "../ui.js";

const HOUR_MS = 3_600_000;
const MINUTE_MS = 60_000;

// Samples come every half minute: they are asked for as often, whatever else happens.
const SAMPLE_MS = 30_000;

// Further apart, there was nobody to take one: the line is broken there.
const GAP_MS = 2.5 * SAMPLE_MS;

// The samples of the last hour: those that are known, as long as there can be no newer one.
export async function retell(state, signal) {
  if (state.history && Date.now() - state.historyAt < SAMPLE_MS) return state.history;
  state.history = await api.get("/runtime/queue/history", {}, { signal });
  state.historyAt = Date.now();
  return state.history;
}

export function charts(samples, at, reload) {
  if (samples instanceof Error) return card(t("overview.hour"), problemBox(samples, reload));
  if (samples.length < 2) return card(t("overview.hour"), h("p", { class: "empty" }, t("overview.soon")));
  const depth = { queued: (each) => each.queued, working: (each) => each.leased + each.running };
  const rates = { done: perMinute(samples, ["completed"]), lost: perMinute(samples, ["failed", "dead"]) };
  return h(
    "div",
    { class: "pair block" },
    card(null, picture("depth", line(samples, depth.queued), line(samples, depth.working), ["queued", "good"], at, (n) => number(n))),
    card(null, picture("throughput", line(samples, rates.done), line(samples, rates.lost), ["good", "bad"], at, rate)),
  );
}

function picture(name, first, second, kinds, at, format) {
  const now = (points) => format(points.at(-1)[1] ?? 0);
  const most = (points) => format(Math.max(...points.map(([, value]) => value ?? 0)));
  const words = { firstNow: now(first), firstMost: most(first), secondNow: now(second), secondMost: most(second) };
  const series = [first, second].map((points, index) => ({
    name: `${t(`overview.${name}.${index}`)}: ${now(points)}`,
    kind: kinds[index],
    points,
  }));
  return [
    lines({ title: t(`overview.${name}`), words: t(`overview.${name}.words`, words), series, from: at - HOUR_MS, to: at, format, fill: true }),
    h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, t("overview.hourAgo")), h("span", {}, t("overview.now"))),
  ];
}

function rate(value) {
  return t("overview.perMinute", { n: number(value, { maximumFractionDigits: 1 }) });
}

// What happened since the sample before, for each minute of that time; null where that is not known.
function perMinute(samples, names) {
  return (each, index) => {
    if (index === 0 || each.created === null) return null;
    const minutes = (each.at - samples[index - 1].at) / MINUTE_MS;
    return names.reduce((sum, name) => sum + each[name], 0) / minutes;
  };
}

function line(samples, value) {
  return samples.flatMap((each, index) => {
    const point = [each.at, value(each, index)];
    const gap = index > 0 && each.at - samples[index - 1].at > GAP_MS;
    return gap ? [[each.at, null], point] : [point];
  });
}
