import { h } from "../dom.js";
import { t } from "../i18n.js";

export const workers = {
  title: () => t("workers.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("workers.title")))],
};
