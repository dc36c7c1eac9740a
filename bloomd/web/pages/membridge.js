import { h } from "../dom.js";
import { t } from "../i18n.js";

export const membridge = {
  title: () => t("membridge.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("membridge.title")))],
};
