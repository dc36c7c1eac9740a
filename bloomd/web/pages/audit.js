import { h } from "../dom.js";
import { t } from "../i18n.js";

export const audit = {
  title: () => t("audit.title"),
  types: [],
  load: async () => ({}),
  render: () => [h("header", { class: "bar" }, h("h1", {}, t("audit.title")))],
};
