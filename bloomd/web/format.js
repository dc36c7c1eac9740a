// Times, durations and sizes for people. Times of the API are epoch milliseconds, durations here are seconds.

import { clockOffset } from "./api.js";
import { h } from "./dom.js";
import { formatter, number } from "./i18n.js";

const STEPS = [
	["second", 60],
	["minute", 60],
	["hour", 24],
	["day", 30],
	["month", 12],
	["year", Infinity],
];

// The server's time now, in ms.
export function now() {
	return Date.now() + clockOffset;
}

// "5 min ago", "in 2 h".
export function relative(ms) {
	let value = (ms - now()) / 1000;
	if (Math.abs(value) < 1) value = 0;
	for (const [unit, size] of STEPS) {
		if (Math.abs(value) < size)
			return formatter(Intl.RelativeTimeFormat, { numeric: "auto", style: "short" }).format(Math.trunc(value), unit);
		value /= size;
	}
}

export function exact(ms) {
	return formatter(Intl.DateTimeFormat, { dateStyle: "medium", timeStyle: "medium" }).format(ms);
}

// A moment: how long ago, and on hover exactly when. It stays true while it is shown.
export function time(ms, nothing = "–") {
	if (ms === null || ms === undefined) return nothing;
	return h("time", { datetime: new Date(ms).toISOString(), title: exact(ms), "data-at": ms }, relative(ms));
}

export function renewTimes(root = document) {
	for (const node of root.querySelectorAll("time[data-at]")) {
		const text = relative(Number(node.dataset.at));
		if (node.textContent !== text) node.firstChild.data = text;
	}
}

function unit(value, name, digits = 0) {
	return number(value, { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: digits });
}

// "350 ms", "4.2 s", "3 min 5 s", "2 h 10 min", "3 d 4 h".
export function duration(seconds, nothing = "–") {
	if (seconds === null || seconds === undefined) return nothing;
	if (seconds < 1) return unit(Math.round(seconds * 1000), "millisecond");
	if (seconds < 10) return unit(seconds, "second", 1);
	const whole = Math.round(seconds);
	const parts = [
		[Math.floor(whole / 86400), "day"],
		[Math.floor(whole / 3600) % 24, "hour"],
		[Math.floor(whole / 60) % 60, "minute"],
		[whole % 60, "second"],
	];
	const first = parts.findIndex(([value]) => value > 0);
	return parts
		.slice(first, first + 2)
		.filter(([value]) => value > 0)
		.map(([value, name]) => unit(value, name))
		.join(" ");
}

export function milliseconds(ms, nothing = "–") {
	return ms === null || ms === undefined ? nothing : unit(ms, "millisecond", ms < 10 ? 1 : 0);
}

export function bytes(count, nothing = "–") {
	if (count === null || count === undefined) return nothing;
	const names = ["byte", "kilobyte", "megabyte", "gigabyte"];
	let step = 0;
	while (count >= 1024 && step < names.length - 1) [count, step] = [count / 1024, step + 1];
	return unit(count, names[step], step ? 1 : 0);
}
