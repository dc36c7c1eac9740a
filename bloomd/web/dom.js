// Elements from code, and a patch that brings what is shown to what shall be shown.
//
// Text is only ever a text node: nothing that a task, a worker or an error says can become markup.
// A page is rendered as a whole, again and again; `patch` changes only what differs, so that focus, selection, scrolling
// and what is being typed stay where they are. Children with a `key` are matched by it, others by their place.

const SVG = "http://www.w3.org/2000/svg";

// Handlers are properties (onclick), which `patch` can carry over; the names that a node has are kept beside it.
const HANDLERS = Symbol("handlers");
const KEY = Symbol("key");

export function h(tag, attributes, ...children) {
	return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
	return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (value === null || value === undefined || value === false) continue;
		if (name === "key") node[KEY] = String(value);
		else if (name.startsWith("on")) {
			node[name] = value;
			(node[HANDLERS] ??= new Set()).add(name);
		} else node.setAttribute(name, value === true ? "" : String(value));
	}
	node.append(...nodes(children));
	return node;
}

// Children may be nested lists, text, numbers, and nothing.
function nodes(children) {
	return children
		.flat(Infinity)
		.filter((child) => child !== null && child !== undefined && child !== false && child !== "")
		.map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}

// Make `parent` hold these children.
export function patch(parent, ...children) {
	patchChildren(parent, nodes(children));
}

function patchChildren(parent, wanted) {
	const keyed = new Map();
	for (const child of parent.childNodes) if (child[KEY] !== undefined) keyed.set(child[KEY], child);
	let place = parent.firstChild;
	for (const next of wanted) {
		const key = next[KEY];
		let found = key === undefined ? place : keyed.get(key);
		if (found && (found.nodeName !== next.nodeName || found[KEY] !== key)) found = undefined;
		if (!found) {
			parent.insertBefore(next, place);
			continue;
		}
		if (found === place) place = place.nextSibling;
		else parent.insertBefore(found, place);
		patchNode(found, next);
	}
	while (place) {
		const gone = place;
		place = place.nextSibling;
		gone.remove();
	}
}

function patchNode(node, next) {
	if (node === next || (node.nodeType === Node.ELEMENT_NODE && node.hasAttribute("aria-busy"))) return;
	if (node.nodeType === Node.TEXT_NODE) {
		if (node.data !== next.data) node.data = next.data;
		return;
	}
	const said = rendered(node);
	for (const { name } of [...node.attributes])
		// What a person has opened stays open, whatever it was rendered as.
		if (!next.hasAttribute(name) && !(name === "open" && node.nodeName === "DETAILS")) node.removeAttribute(name);
	for (const { name, value } of next.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
	for (const name of node[HANDLERS] ?? []) if (!next[HANDLERS]?.has(name)) node[name] = null;
	for (const name of next[HANDLERS] ?? []) node[name] = next[name];
	node[HANDLERS] = next[HANDLERS];
	patchChildren(node, [...next.childNodes]);
	// A field that has the focus is as a person has left it, unless it is rendered with another value than before.
	if (node === document.activeElement && said === rendered(next)) return;
	if (node.type === "checkbox" || node.type === "radio") node.checked = next.checked;
	else if (node.nodeName === "SELECT" || (node.nodeName === "INPUT" && next.hasAttribute("value"))) node.value = next.value;
}

// What a field was rendered with, whatever has become of it.
function rendered(node) {
	return node.nodeName === "SELECT" ? node.querySelector("option[selected]")?.value : node.getAttribute?.("value");
}
