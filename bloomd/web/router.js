// The address is the state of the page: #/tasks?status=dead. A link can be shared, and Back goes back.

export function here() {
	const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
	return { page: path || "overview", params: new URLSearchParams(query ?? "") };
}

// The address of a page; empty parameters are left out.
export function href(page, params = {}) {
	const entries = params instanceof URLSearchParams ? [...params] : Object.entries(params);
	const query = new URLSearchParams(entries.filter(([, value]) => value !== "" && value !== null && value !== undefined));
	return `#/${page}${query.size ? `?${query}` : ""}`;
}

export function go(page, params) {
	location.hash = href(page, params);
}

// The same page with some parameters changed, as a step of its own for Back. A changed filter begins at the first page.
export function change(changes, { replace = false } = {}) {
	const { page, params } = here();
	if (!("cursor" in changes)) params.delete("cursor");
	for (const [name, value] of Object.entries(changes)) params.set(name, value ?? "");
	if (!replace) return go(page, params);
	history.replaceState(null, "", href(page, params));
	dispatchEvent(new HashChangeEvent("hashchange"));
}
