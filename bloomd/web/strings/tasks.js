export default {
  en: {
    title: "Tasks",
  },
  uk: {
    title: "Задачі",
  },
};
