export default {
  en: {
    title: "Workers",
  },
  uk: {
    title: "Вузли",
  },
};
