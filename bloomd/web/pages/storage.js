// What holds what was made: the object store, and the backups.

import { h } from "../dom.js";
import { bytes, now, time } from "../format.js";
import { t } from "../i18n.js";
import { link } from "../ui.js";

// So many damaged contents are named.
const NAMED = 3;

// Both as rows of `facts`; one that is not set up has none.
export function storage({ objects, backup }) {
	return [
		[t("overview.objects.title"), objects && moved(objects)],
		[t("overview.backup.title"), backup && backedUp(backup)],
	];
}

// Contents that are not what they were are lost without a backup: that is not to be overlooked.
export function damage({ objects }) {
	const ids = objects?.damaged ?? [];
	if (ids.length === 0) return null;
	const named = ids.slice(0, NAMED).map((id, at) => [at > 0 && ", ", link(id, "audit", { entity_id: id }, { class: "mono" })]);
	const more = ids.length > NAMED && ` ${t("overview.objects.more", { n: ids.length - NAMED })}`;
	return h(
		"div",
		{ class: "problem", role: "alert", key: "damage" },
		h("strong", {}, t("overview.objects.damaged", { n: ids.length })),
		h("p", {}, named, more),
		h("p", {}, t("overview.objects.advice")),
	);
}

function moved({ to_move: moving, to_move_bytes: size, to_remove: removing, damaged }) {
	const left = [
		moving > 0 && `${t("overview.objects.toMove", { n: moving })} (${bytes(size)})`,
		removing > 0 && t("overview.objects.toRemove", { n: removing }),
	].filter(Boolean);
	return [
		left.join(", ") || t("overview.objects.moved"),
		damaged.length > 0 && h("span", { class: "wrong" }, `, ${t("overview.objects.damaged", { n: damaged.length })}`),
	];
}

function backedUp({ next, since, verified_age_seconds: age, missing, error }) {
	return [
		age === null ? h("span", { class: "wrong" }, t("overview.backup.never")) : [t("overview.backup.verified"), " ", time(Math.round(now() - age * 1000))],
		", ",
		since === null ? due(next * 1000) : [t("overview.backup.since"), " ", time(since * 1000)],
		missing > 0 && h("span", { class: "wrong" }, `, ${t("overview.backup.missing", { n: missing })}`),
		error && h("span", { class: "wrong", lang: "en" }, `, ${error}`),
	];
}

function due(at) {
	return at > now() ? [t("overview.backup.next"), " ", time(at)] : t("overview.backup.due");
}
