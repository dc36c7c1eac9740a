// Words in the reader's language. Each file in strings/ holds the words of one part of the page, in every language.

import app from "./strings/app.js";
import audit from "./strings/audit.js";
import keys from "./strings/keys.js";
import membridge from "./strings/membridge.js";
import overview from "./strings/overview.js";
import runtime from "./strings/runtime.js";
import tasks from "./strings/tasks.js";
import workers from "./strings/workers.js";

export const LANGUAGES = { en: "English", uk: "Українська" };
const CATALOGUES = { app, audit, keys, membridge, overview, runtime, tasks, workers };
const CHOICE = "bloomd.language";

export let language = chosen();

function chosen() {
	const wanted = [remembered(), ...navigator.languages.map((each) => each.slice(0, 2))];
	return wanted.find((each) => each in LANGUAGES) ?? "en";
}

// A browser that is told to keep nothing throws.
function remembered() {
	try {
		return localStorage.getItem(CHOICE);
	} catch {
		return null;
	}
}

export function choose(next) {
	language = next;
	try {
		localStorage.setItem(CHOICE, next);
	} catch {
		// Then it is chosen for as long as the page is open.
	}
}

function found(key) {
	const [part, ...names] = key.split(".");
	const own = (words, name) => (typeof words === "object" && Object.hasOwn(words, name) ? words[name] : undefined);
	const text = names.reduce(own, CATALOGUES[part]?.[language]);
	return typeof text === "string" || text?.other ? text : undefined;
}

// The words for a key such as "tasks.title", with {names} filled in. A text may differ by number: {one, few, many, other},
// chosen by the parameter n.
export function t(key, params = {}) {
	let text = found(key);
	if (text === undefined) throw new Error(`no words for ${key} in ${language}`);
	if (typeof text === "object") text = text[formatter(Intl.PluralRules).select(params.n)] ?? text.other;
	return text.replace(/\{(\w+)\}/g, (_, name) => (typeof params[name] === "number" ? number(params[name]) : (params[name] ?? "")));
}

// The same where there may be none: of what the server names and may name anew.
export function known(key, fallback) {
	return found(key) === undefined ? fallback : t(key);
}

export function number(value, options) {
	return formatter(Intl.NumberFormat, options).format(value);
}

// To make one takes longer than to format hundreds of values with it.
const made = new Map();
export function formatter(Kind, options) {
	const key = `${Kind.name} ${language} ${JSON.stringify(options)}`;
	if (!made.has(key)) made.set(key, new Kind(language, options));
	return made.get(key);
}
