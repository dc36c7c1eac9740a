export default {
  en: {
    title: "Audit",
  },
  uk: {
    title: "Аудит",
  },
};
