// Small pictures of numbers over time, each with the same in words.

import { h, svg } from "./dom.js";

const WIDTH = 600;

// Lines over time. series: [{name, kind, points: [[at, value|null], ...]}]; a null is a gap. `words` says it in text.
export function lines({ title, words, series, height = 120, from, to, format = String, fill = false }) {
	const values = series.flatMap(({ points }) => points.map(([, value]) => value).filter((value) => value !== null));
	const most = Math.max(1, ...values);
	const x = (at) => ((at - from) / (to - from || 1)) * WIDTH;
	const y = (value) => height - 4 - (value / most) * (height - 16);
	return h(
		"figure",
		{ class: "chart" },
		h("figcaption", {}, h("strong", {}, title), h("span", { class: "legend" }, series.map(({ name, kind }) => h("span", { class: kind }, name)))),
		svg(
			"svg",
			{ viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words },
			svg("line", { x1: 0, x2: WIDTH, y1: height - 4, y2: height - 4, class: "axis" }),
			series.map(({ kind, points }) =>
				pieces(points).map((piece) => {
					const path = piece.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
					const area = `${path}L${x(piece.at(-1)[0]).toFixed(1)} ${height - 4}L${x(piece[0][0]).toFixed(1)} ${height - 4}Z`;
					return [fill && svg("path", { d: area, class: `area ${kind}` }), svg("path", { d: path, class: `line ${kind}` })];
				}),
			),
		),
		h("span", { class: "most", "aria-hidden": "true" }, format(most)),
		h("p", { class: "hidden" }, words),
	);
}

// One short line without axes, for the latest of something.
export function sparkline({ points, words, height = 28 }) {
	const from = points[0]?.[0] ?? 0;
	const to = points.at(-1)?.[0] ?? 1;
	const most = Math.max(...points.map(([, value]) => value ?? 0), 1e-9);
	const x = (at) => ((at - from) / (to - from || 1)) * 200;
	const y = (value) => height - 2 - (value / most) * (height - 4);
	return svg(
		"svg",
		{ class: "sparkline", viewBox: `0 0 200 ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words },
		pieces(points).map((piece) =>
			svg("path", { class: "line", d: piece.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("") }),
		),
		points.filter(([, value]) => value === null).map(([at]) => svg("line", { class: "gap", x1: x(at), x2: x(at), y1: 0, y2: height })),
	);
}

// The points between the gaps.
function pieces(points) {
	const found = [[]];
	for (const point of points) {
		if (point[1] === null) found.push([]);
		else found.at(-1).push(point);
	}
	return found.filter((piece) => piece.length);
}
