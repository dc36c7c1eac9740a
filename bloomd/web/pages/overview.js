import { h } from "../dom.js";
import { t } from "../i18n.js";

export const overview = {
  title: () => t("overview.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("overview.title")))],
};
