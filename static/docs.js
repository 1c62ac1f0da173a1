const dark = matchMedia("(prefers-color-scheme: dark)");
dark.onchange = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.onchange();

SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
});
