import type { ReactNode } from "react";

export const metadata = { title: "Todo", icons: "data:," };

const style = `
  body { font: 1rem/1.5 system-ui; max-width: 32rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
  header, form, li { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0.5rem 0 }
  ul { padding: 0 }
`;

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="en">
      <body>
        <style>{style}</style>
        {children}
      </body>
    </html>
  );
}
