export default {
  en: {
    title: "Overview",
  },
  uk: {
    title: "Огляд",
  },
};
