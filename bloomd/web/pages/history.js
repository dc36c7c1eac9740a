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
	const series = (kind, states, value) => ({
		kind,
		name: states.map((state) => t(`app.state.${state}`)).join(" + "),
		points: line(samples, value(states)),
	});
	const depth = [series("queued", ["queued"], total), series("good", ["leased", "running"], total)];
	const perMinute = pace(samples);
	const rates = [series("good", ["completed"], perMinute), series("bad", ["failed", "dead"], perMinute)];
	return h(
		"div",
		{ class: "pair block" },
		card(null, picture(t("overview.depth"), depth, at, (value) => number(value))),
		card(null, picture(t("overview.throughput"), rates, at, (value) => t("overview.perMinute", { n: number(value, { maximumFractionDigits: 1 }) }))),
	);
}

function picture(title, series, at, format) {
	const told = series.map(({ name, kind, points }) => {
		const [last, value] = points.at(-1);
		const known = points.map((point) => point[1]).filter((each) => each !== null);
		const now = value === null || at - last > GAP_MS ? "–" : format(value);
		const most = known.length ? format(Math.max(...known)) : "–";
		return { name: `${name}: ${now}`, kind, points, words: t("overview.words", { name, now, most }) };
	});
	const words = [`${title}, ${t("overview.hour")}`, ...told.map((each) => each.words)].join(". ");
	return [
		lines({ title, words, series: told, from: at - HOUR_MS, to: at, format, fill: true }),
		h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, t("overview.hourAgo")), h("span", {}, t("overview.now"))),
	];
}

function total(states) {
	return (sample) => states.reduce((sum, state) => sum + sample[state], 0);
}

// What happened since the sample before, for each minute of that time; null where that is not known.
function pace(samples) {
	return (states) => (sample, index) => {
		if (index === 0 || sample.created === null) return null;
		return (total(states)(sample) * MINUTE_MS) / (sample.at - samples[index - 1].at);
	};
}

function line(samples, value) {
	return samples.flatMap((sample, index) => {
		const point = [sample.at, value(sample, index)];
		const gap = index > 0 && sample.at - samples[index - 1].at > GAP_MS;
		return gap ? [[sample.at, null], point] : [point];
	});
}
