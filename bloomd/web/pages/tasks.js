import { h } from "../dom.js";
import { t } from "../i18n.js";

export const tasks = {
  title: () => t("tasks.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("tasks.title")))],
};
