export default {
  en: {
    title: "Runtime",
  },
  uk: {
    title: "Runtime",
  },
};
