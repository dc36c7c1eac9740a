import { h } from "../dom.js";
import { t } from "../i18n.js";

export const runtime = {
  title: () => t("runtime.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("runtime.title")))],
};
