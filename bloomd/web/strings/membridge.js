export default {
  en: {
    title: "Membridge",
  },
  uk: {
    title: "Membridge",
  },
};
